// What the matrix tier takes for granted, in exact numbers: all that decode_matrix.wgsl does with subgroup matrices, one thing at a time, from and to
// the same workgroup arrays.
//
// Most checks make a product of left_value and right_value, small integers that tell rows from columns; one sum is larger than f16 holds. Operands lie
// as Q, K, V and P do, in padded rows at places that are not 0, with other numbers all around.
//
// How work is cut: one subgroup. A check leaves its answer in `slices`, of which `take` puts all into `result`, a stretch a check: what is stored
// where nothing belongs shows as well.
//
// The launcher (src/webgpu/matrix-test.ts) puts the enables, `result`, the constants, the kernel's workgroup arrays and its `halves` and `out_of_range` in
// front, and changes loads and stores to the form of the syntax on trial.

var<workgroup> events: atomic<u32>;

alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Result = subgroup_matrix_result<f32, 16, 16>;

// Two of f16: 99, which is no operand.
const OTHER = 0x56305630u;
const UNTOUCHED = 0.5;

fn left_value(row: u32, k: u32) -> f32 { return select(f32((row * 3u + k * 5u) % 11u) - 4.0, 96.0, row == 3u); }
fn right_value(k: u32, column: u32) -> f32 { return select(f32((k * 7u + column * 2u) % 13u) - 5.0, 64.0, column == 5u); }

fn halves_of(low: f32, high: f32) -> u32 { return bitcast<u32>(vec2<f16>(vec2<f32>(low, high))); }

// A number of f16 as its bits. The kernel does not tell what is not finite apart.
fn pattern(half: u32) -> f32 { return f32(select(half, 0x7c00u, (half & 0x7c00u) == 0x7c00u)); }

fn patterns(x: u32, y: u32) -> vec4<f32> { return vec4<f32>(pattern(x & 0xffffu), pattern(x >> 16u), pattern(y & 0xffffu), pattern(y >> 16u)); }

// Q and P are left_value times `scale`, V is right_value, and K too, whose rows are its columns.
fn put_operands(thread: u32, scale: f32) {
  workgroupBarrier();
  for (var i = thread; i < TILES * TILE_SIZE; i += THREADS) { tile_put(i, vec4<u32>(OTHER)); }
  for (var i = thread; i < PROBS_SIZE; i += THREADS) { probs_put(i, vec2<u32>(OTHER)); }
  workgroupBarrier();
  for (var i = thread; i < 32u; i += THREADS) {
    let row = i / 2u;
    let eight = i % 2u;
    var q: vec4<u32>;
    var k: vec4<u32>;
    var v: vec4<u32>;
    for (var n = 0u; n < 4u; n++) {
      let at = eight * 8u + 2u * n;
      q[n] = halves_of(left_value(row, at) * scale, left_value(row, at + 1u) * scale);
      k[n] = halves_of(right_value(at, row), right_value(at + 1u, row));
      v[n] = halves_of(right_value(row, at), right_value(row, at + 1u));
    }
    tile_put(Q_AT + row * KV_STRIDE + eight, q);
    tile_put(K_AT + row * KV_STRIDE + eight, k);
    tile_put(V_AT + row * KV_STRIDE + eight, v);
    probs_put(P_AT + row * P_STRIDE + 2u * eight, q.xy);
    probs_put(P_AT + row * P_STRIDE + 2u * eight + 1u, q.zw);
  }
  workgroupBarrier();
}

// The answer to a check; then nothing is left of it.
fn take(check: u32, thread: u32) {
  workgroupBarrier();
  for (var i = thread; i < SLICES_SIZE; i += THREADS) {
    result[check * SLICES_SIZE + i] = slices_get(i);
    slices_put(i, vec4<f32>(UNTOUCHED));
  }
  workgroupBarrier();
}

@compute @workgroup_size(THREADS)
fn main(
  @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup_index: u32, @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
  // 0. With it a place is no constant, and bounds checks have another form.
  let me = subgroup_index;
  for (var i = thread; i < SLICES_SIZE; i += THREADS) { slices_put(i, vec4<f32>(UNTOUCHED)); }
  put_operands(thread, 1.0);

  var q = Left();
  q = subgroupMatrixLoad<Left, row_major>(&kv_tile, Q_AT + me, KV_STRIDE);
  let v = subgroupMatrixLoad<Right, row_major>(&kv_tile, V_AT + me, KV_STRIDE);
  var by_row = Result();
  by_row = subgroupMatrixMultiplyAccumulate(q, v, by_row);
  subgroupMatrixStore<row_major>(&slices, 0u, by_row, 4u);
  let fixed_q = subgroupMatrixLoad<Left, row_major>(&kv_tile, Q_AT, KV_STRIDE);
  let fixed_v = subgroupMatrixLoad<Right, row_major>(&kv_tile, V_AT, KV_STRIDE);
  by_row = Result();
  by_row = subgroupMatrixMultiplyAccumulate(fixed_q, fixed_v, by_row);
  subgroupMatrixStore<row_major>(&slices, 64u, by_row, 4u);
  take(ROW_LOADS, thread);

  let k = subgroupMatrixLoad<Right, col_major>(&kv_tile, K_AT + me, KV_STRIDE);
  var by_column = Result();
  by_column = subgroupMatrixMultiplyAccumulate(q, k, by_column);
  subgroupMatrixStore<row_major>(&slices, 0u, by_column, 4u);
  let fixed_k = subgroupMatrixLoad<Right, col_major>(&kv_tile, K_AT, KV_STRIDE);
  by_column = Result();
  by_column = subgroupMatrixMultiplyAccumulate(q, fixed_k, by_column);
  subgroupMatrixStore<row_major>(&slices, 64u, by_column, 4u);
  take(COLUMN_LOADS, thread);

  let p = subgroupMatrixLoad<Left, row_major>(&probs, P_AT + me, P_STRIDE);
  var of_pairs = Result();
  of_pairs = subgroupMatrixMultiplyAccumulate(p, v, of_pairs);
  subgroupMatrixStore<row_major>(&slices, 0u, of_pairs, 4u);
  let fixed_p = subgroupMatrixLoad<Left, row_major>(&probs, P_AT, P_STRIDE);
  of_pairs = Result();
  of_pairs = subgroupMatrixMultiplyAccumulate(fixed_p, v, of_pairs);
  subgroupMatrixStore<row_major>(&slices, 64u, of_pairs, 4u);
  take(PAIR_LOADS, thread);

  // Two turns of three products, which no compiler can tell. SUMS is the first turn's; the other's, NEXT_SUMS, is wrong if it began with what was left.
  if (thread == 0u) { atomicStore(&events, 2u); }
  let turns = min(workgroupUniformLoad(&events), 2u);
  for (var turn = 0u; turn < turns; turn++) {
    var s = Result();
    for (var n = 0u; n <= turns; n++) { s = subgroupMatrixMultiplyAccumulate(q, v, s); }
    subgroupMatrixStore<row_major>(&slices, 0u, s, 4u);
    take(SUMS + turn, thread);
  }

  var o = Result();
  o = subgroupMatrixMultiplyAccumulate(q, v, o);
  subgroupMatrixStore<row_major>(&slices, O_AT + me, o, O_STRIDE);
  take(STORES, thread);

  // As O is rescaled, and goes on.
  subgroupMatrixStore<row_major>(&slices, O_AT + me, o, O_STRIDE);
  workgroupBarrier();
  for (var i = thread; i < 64u; i += THREADS) {
    let at = O_AT + i / 4u * O_STRIDE + i % 4u;
    slices_put(at, slices_get(at) * 2.0);
  }
  workgroupBarrier();
  o = subgroupMatrixLoad<Result, row_major>(&slices, O_AT + me, O_STRIDE);
  o = subgroupMatrixMultiplyAccumulate(q, v, o);
  subgroupMatrixStore<row_major>(&slices, O_AT + me, o, O_STRIDE);
  take(LOADED_SUMS, thread);

  // A subgroup's lanes act in step: what they write now comes after what all have loaded, with no barrier in between.
  let gone_q = subgroupMatrixLoad<Left, row_major>(&kv_tile, Q_AT + me, KV_STRIDE);
  let gone_v = subgroupMatrixLoad<Right, row_major>(&kv_tile, V_AT + me, KV_STRIDE);
  for (var i = subgroup_lane; i < TILES * TILE_SIZE; i += THREADS) { tile_put(i, vec4<u32>(OTHER)); }
  var gone = Result();
  gone = subgroupMatrixMultiplyAccumulate(gone_q, gone_v, gone);
  subgroupMatrixStore<row_major>(&slices, 0u, gone, 4u);
  // So that no compiler takes the writing for needless.
  workgroupBarrier();
  for (var i = thread; i < 64u; i += THREADS) { slices_put(64u + i, vec4<f32>(f32(tile_get(TILES * TILE_SIZE - 1u - i).x == OTHER))); }
  take(OVERWRITTEN, thread);

  #if O_IN_TILE
  // As O leaves.
  subgroupMatrixStore<row_major>(&kv_tile, O_AT + me, by_row, O_STRIDE);
  workgroupBarrier();
  for (var i = thread; i < 64u; i += THREADS) { slices_put(i, bitcast<vec4<f32>>(tile_get(O_AT + i / 4u * O_STRIDE + i % 4u))); }
  take(TILE_STORES, thread);
  #end

  // Numbers that a compiler sees, then such as only the device knows: `result` ends with zeros, where nobody writes.
  let seen = 65536.0;
  let unseen = halves(vec4<u32>(0x4780c780u, 0x7f7fff7fu, 0x7f80ff80u, 0x7fc0477fu) + bitcast<vec4<u32>>(result[ZEROS_AT]));
  if (thread == 0u) {
    slices_put(0u, patterns(halves_of(seen, -seen), halves_of(1e5 * seen, -1e5 * seen)));
    slices_put(1u, patterns(unseen.x, unseen.y));
    slices_put(2u, patterns(unseen.z, unseen.w));
  }
  take(CONVERSIONS, thread);

  // Below f16's normal numbers: that none becomes zero is what the kernel's bounds on the loss rest on.
  put_operands(thread, 0x1p-24);
  let small_q = subgroupMatrixLoad<Left, row_major>(&kv_tile, Q_AT + me, KV_STRIDE);
  var small = Result();
  small = subgroupMatrixMultiplyAccumulate(small_q, v, small);
  subgroupMatrixStore<row_major>(&slices, 0u, small, 4u);
  workgroupBarrier();
  for (var i = thread; i < 64u; i += THREADS) { slices_put(i, slices_get(i) * 0x1p24); }
  take(SMALL_NUMBERS, thread);

  // Infinity and NaN, in two rows of Q and four of K. One of them meets a zero of Q.
  put_operands(thread, 1.0);
  if (thread == 0u) {
    tile_put(Q_AT + 7u * KV_STRIDE, vec4<u32>(0x7e00u, 0u, 0u, 0u));
    tile_put(Q_AT + 12u * KV_STRIDE, vec4<u32>(0x7c00u, 0u, 0u, 0u));
    tile_put(K_AT + KV_STRIDE, vec4<u32>(0x7c00u, 0u, 0u, 0u));
    tile_put(K_AT + 2u * KV_STRIDE, vec4<u32>(0xfc00u, 0u, 0u, 0u));
    tile_put(K_AT + 6u * KV_STRIDE, vec4<u32>(0xfc00u, 0u, 0u, 0u));
    tile_put(K_AT + 9u * KV_STRIDE, vec4<u32>(0x7e00u, 0u, 0u, 0u));
  }
  workgroupBarrier();
  let wild_q = subgroupMatrixLoad<Left, row_major>(&kv_tile, Q_AT + me, KV_STRIDE);
  let wild_k = subgroupMatrixLoad<Right, col_major>(&kv_tile, K_AT + me, KV_STRIDE);
  var wild = Result();
  wild = subgroupMatrixMultiplyAccumulate(wild_q, wild_k, wild);
  subgroupMatrixStore<row_major>(&slices, 0u, wild, 4u);
  workgroupBarrier();
  for (var i = thread; i < 64u; i += THREADS) {
    let x = slices_get(i);
    slices_put(i, select(vec4<f32>(0.0, x.x + x.y + x.z + x.w, 0.0, 0.0), vec4<f32>(1.0, 0.0, 0.0, 0.0), out_of_range(x)));
  }
  take(NOT_FINITE, thread);

  if (thread == 0u) { atomicStore(&events, 0u); }
  workgroupBarrier();
  if (thread == THREADS - 1u) { atomicOr(&events, 4u); }
  let first = workgroupUniformLoad(&events);
  if (thread == 1u) { atomicOr(&events, 8u); }
  let second = workgroupUniformLoad(&events);
  if (thread == 0u) { atomicAnd(&events, ~4u); }
  let third = workgroupUniformLoad(&events);
  for (var i = thread; i < 64u; i += THREADS) { slices_put(i, vec4<f32>(f32(first), f32(second), f32(third), 0.0)); }
  take(EVENTS, thread);
}
