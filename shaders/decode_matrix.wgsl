// Split-KV decode attention over a paged latent cache, matrix tier: subgroup matrices, f16 operands, f32 sums.
//
// Computes what decode.wgsl computes, in its terms: for one row tile, one KV head and one part of the schedule,
// softmax(scale Q K^T) V over that part's KV blocks.
//
// How work is cut: workgroup (x, y, z) = (part, row tile, KV head), ROWS rows. The part's sequences are taken one after
// another, TOKENS keys a step:
//   stage   TOKENS cached rows, which have been under way for a while, into workgroup memory as f16. A subgroup stages the columns that it
//           alone reads as V as soon as it has made its output, with no barrier in between: a subgroup's lanes act in step on the devices
//           that have these matrices. Likewise its share of the columns behind V, which nobody reads after the scores
//   scores  a subgroup makes one matrix of S, 16 rows and 16 keys, over one of SLICES slices of d. With two tiles the first products
//           are made a step ahead, beside stage
//   softmax ROW_THREADS neighbouring lanes share a row, 4 keys at a time: the slices' sum, probabilities, running sum
//   output  a subgroup owns OUT_TILES x 16 columns of O for all rows. With two tiles the first matrices of V are on their way while all wait
//           for the softmax of all, so that the first product waits for P alone
// In between all wait for all. But the next step's scores, if its keys are in a second tile, do not wait for output and stage: then three
// barriers a step, else four.
// P is made as if a row's reference exponent were to stay and each row saw each key, without a look at the row's maximum. Where that is not
// so, a score is too far above the reference or the step at a sequence's end, someone raises an event; then, rarely, the row's maximum is
// found, P made again, and O rescaled by way of workgroup memory. So P fills f16's range, and O is exact relative to the reference.
// Q's rows are scaled by a power of two into f16's range. What f16 cannot hold of a cache of bf16 sends the workgroup to `exact`
// (decode_exact.wgsl), which does the same sequence again in f32. Numbers too large show in every score they are part of. Small ones lose up to
// 2^-25 each. In a score that is nothing unless Q's row is so large that the sum of such losses might show; in V it is nothing beside what a row of
// O is made of, unless all of that row is faint.
//
// What lives where: O and Q as matrices in registers for as long as the sequence, but for the last of each slice's columns of Q where
// Q is split; the rows to be staged next in registers, from where the launcher puts FETCH; the KV tiles, the slices of S, P, and what is
// left of Q in workgroup memory. Neighbours there lie a padded row apart, so that the 8 rows of a matrix load meet different banks. In the padding
// behind a row of P is the row's state: its scores' scale and its reference, then the first key that it does not see and where its O belongs.
// Its sum is in the registers of its lanes. Registers are what this kernel is short of: whatever is not used at each step is somewhere else.
//
// The launcher (src/webgpu/decode-matrix.ts) puts the constants, the plan's layout, the KV bindings and the workgroup
// arrays kv_tile and q_tile (8 f16 an element), probs (4 f16) and slices (4 f32) in front, with what depends on the compiler's syntax
// for subgroup matrices, and decode_exact.wgsl behind. It writes what lines of capitals stand for: FETCH_Q, FETCH, FETCH_SECOND, FETCH_NEXT, STAGE,
// STAGE_SECOND, SCORES, SCORES_AHEAD, V_AHEAD, OUTPUT_AHEAD, OUTPUT, NEXT, LEAVE, and TURNS and STEPS, loops' heads.

/// Of each row what its scores are multiplied by, until that is beside P; when O is rescaled, by what; in the end its sum's inverse, which is made
/// negative when some number of O, as it leaves, is not FAINT. Bits of f32.
var<workgroup> row_scale: array<atomic<u32>, ROWS>;
var<workgroup> events: atomic<u32>;

alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Result = subgroup_matrix_result<f32, 16, 16>;

// Events. LOOK: a step's scores are to be looked at one by one.
const LOOK = 1u;
const RESCALE = 2u;
const OUT_OF_RANGE = 4u;
const LAST = 8u;
// A row's largest probability is 2^START when its reference is set and 2^(START + HEADROOM) at most.
const START = 7.0;
const HEADROOM = 8.0;
// Numbers of O below this may be less than 2^10 times what f16 has lost of V.
const FAINT = 0x1p-15;
// With scores of base 2 this much of a row of Q, as a sum of magnitudes, may make them wrong by 2^-12.
const REACH = 0x1p13;

/// What a workgroup knows of its rows and of the sequence at hand.
struct Work {
  /// The sequence's number in the batch.
  seq: u32,
  begin: u32,
  end: u32,
  length: u32,
  table_at: u32,
  row_base: u32,
  head_kv: u32,
  s_q: u32,
  group: u32,
  /// log2 of the tokens of a block.
  block_shift: u32,
  /// Index of the partial result, or -1: the sequence is whole here.
  partial: i32,
}

// Which of the s_q * h_q rows of a sequence, in the order of q and out, a row of the KV head's is.
fn query_row(w: Work, row: u32) -> u32 {
  return (row / w.group) * w.group * H_KV + w.head_kv * w.group + row % w.group;
}

// Where Q's row is, in vectors of 8; rows past the end repeat the last one and are never written.
fn q_at(w: Work, row: u32) -> u32 {
  let rows = w.s_q * w.group;
  return (w.seq * rows * H_KV + query_row(w, min(w.row_base + row, rows - 1u))) * VECS;
}

// The first key that a row does not see, or `end`.
fn limit_of(w: Work, row: u32) -> u32 {
  if (plan[PLAN_CAUSAL] == 0u) { return w.end; }
  // Query token i sees keys 0 .. length - s_q + i; counted from the end to stay unsigned.
  let hidden = w.s_q - 1u - min((w.row_base + row) / w.group, w.s_q - 1u);
  return min(w.end, w.length - min(w.length, hidden));
}

fn scaled_pair(x: u32, by: f32) -> u32 {
  return bitcast<u32>(vec2<f16>(vec2<f32>(unpack_low(x), unpack_high(x)) * by));
}

fn scaled(x: vec4<u32>, by: f32) -> vec4<u32> {
  return vec4<u32>(scaled_pair(x.x, by), scaled_pair(x.y, by), scaled_pair(x.z, by), scaled_pair(x.w, by));
}

// Eight cached numbers as f16.
fn halves(x: vec4<u32>) -> vec4<u32> {
  if (!IS_BF16) { return x; }
  let low = bitcast<vec4<f32>>(x << vec4<u32>(16u));
  let high = bitcast<vec4<f32>>(x & vec4<u32>(0xffff0000u));
  return vec4<u32>(
    bitcast<u32>(vec2<f16>(vec2<f32>(low.x, high.x))), bitcast<u32>(vec2<f16>(vec2<f32>(low.y, high.y))),
    bitcast<u32>(vec2<f16>(vec2<f32>(low.z, high.z))), bitcast<u32>(vec2<f16>(vec2<f32>(low.w, high.w))));
}

fn finite_half(x: u32) -> u32 {
  let low = select(x & 0xffffu, 0u, (x & 0x7c00u) == 0x7c00u);
  let high = select(x & 0xffff0000u, 0u, (x & 0x7c000000u) == 0x7c000000u);
  return low | high;
}

// The largest magnitude of 8 numbers, as a 15-bit pattern.
fn magnitude(x: vec4<u32>) -> u32 {
  let m = max(x & vec4<u32>(0x7fffu), (x >> vec4<u32>(16u)) & vec4<u32>(0x7fffu));
  return max(max(m.x, m.y), max(m.z, m.w));
}

// The same as a number.
fn value_of(magnitude: u32) -> f32 { return bitcast<f32>(magnitude << 16u); }

fn power_of_two(exponent: i32) -> f32 { return bitcast<f32>(u32(exponent + 127) << 23u); }

// The exponent to take out of a row of Q, so that its largest number is between 2^14 and 2^15.
fn row_exponent(most: u32) -> i32 {
  let exponent = select(i32(most >> 10u) - 15, i32(most >> 7u) - 127, IS_BF16);
  return clamp(exponent - 14, -126, 126);
}

fn most_of(x: vec4<f32>) -> f32 { return max(max(x.x, x.y), max(x.z, x.w)); }

fn scale_of(row: u32) -> f32 { return bitcast<f32>(atomicLoad(&row_scale[row])); }

fn set_scale(row: u32, scale: f32) { atomicStore(&row_scale[row], bitcast<u32>(scale)); }

fn inverse_of(sum: f32) -> f32 { return select(1.0 / sum, 0.0, sum == 0.0); }

// Where a row of O is, in rows of `partials` or of `out`.
fn o_row(w: Work, row: u32) -> u32 {
  let rows = w.s_q * w.group;
  if (w.partial >= 0) { return (u32(w.partial) * H_KV + w.head_kv) * rows + row; }
  return w.seq * rows * H_KV + query_row(w, row);
}

// Four columns of a row of O.
fn write_quad(w: Work, at_row: u32, quad: u32, value: vec4<f32>) {
  let at = at_row * V_QUADS + quad;
  if (w.partial >= 0) {
    partials[2u * at] = value.xy;
    partials[2u * at + 1u] = value.zw;
  } else {
    out[at] = vec2<u32>(pack(value.x, value.y), pack(value.z, value.w));
  }
}

// Four numbers of O on their way out.
fn o_get(at: u32) -> vec4<f32> {
  #if O_IN_TILE
  return bitcast<vec4<f32>>(tile_get(at));
  #else
  return slices_get(at);
  #end
}

// What all subgroups have put of O: the row tile that begins with `first`, and of each subgroup's columns O_QUADS quads from `quad0` on.
fn write_rows(w: Work, first: u32, quad0: u32, thread: u32) {
  const ROW_QUADS = SUBGROUPS * O_QUADS;
  let row0 = w.row_base + first;
  // No constant, so that compilers leave the loop a loop.
  let count = (clamp(w.s_q * w.group, row0, row0 + 16u) - row0) * ROW_QUADS;
  for (var i0 = thread; i0 < count; i0 += 4u * THREADS) {
    // Four on their way at a time.
    #unroll u < 4
    let i_$u = min(i0 + $uu * THREADS, count - 1u);
    let row_$u = i_$u / ROW_QUADS;
    let subgroup_$u = i_$u / O_QUADS % SUBGROUPS;
    let quad_$u = i_$u % O_QUADS;
    let inverse_$u = abs(scale_of(first + row_$u));
    let o_$u = o_get((subgroup_$u * 16u + row_$u) * O_STRIDE + quad_$u) * inverse_$u;
    let at_row_$u = state_get(first + row_$u, 1u).y;
    #end
    #unroll u < 4
    if (i0 + $uu * THREADS < count) { write_quad(w, at_row_$u, subgroup_$u * OUT_TILES * 4u + quad0 + quad_$u, o_$u); }
    #end
    #if IS_BF16
    #unroll u < 4
    if (most_of(abs(o_$u)) >= FAINT) { set_scale(first + row_$u, -inverse_$u); }
    #end
    #end
  }
}

fn write_lse(w: Work, row: u32, highest: f32, sum: f32) {
  let rows = w.s_q * w.group;
  if (w.partial >= 0) {
    partials[plan[PLAN_LSE_AT] + (u32(w.partial) * H_KV + w.head_kv) * rows + row] = vec2<f32>(partial_lse(highest, sum), 0.0);
  } else {
    lse[(w.seq * H_KV + w.head_kv) * rows + (row % w.group) * w.s_q + row / w.group] = lse_bits(highest, sum);
  }
}

// Segment of a token's cached row and where it is there, in vectors of 8.
fn row_in(w: Work, block: u32, token: u32) -> vec2<u32> {
  var in_segment = block;
  var segment = 0u;
  if (SEGMENTS > 1u) {
    segment = block / BLOCKS_PER_SEGMENT;
    in_segment = block % BLOCKS_PER_SEGMENT;
  }
  return vec2<u32>(segment, (((in_segment << w.block_shift) + (token & ((1u << w.block_shift) - 1u))) * H_KV + w.head_kv) * VECS);
}

// Past a sequence's end its last token's block is looked up: what is in it there is read, and seen by nobody.
fn within(w: Work, token: u32) -> u32 { return min(token, max(w.end, 1u) - 1u); }

fn block_of(w: Work, token: u32) -> u32 { return plan[w.table_at + (within(w, token) >> w.block_shift)]; }

fn visible(token: u32, limit: u32) -> vec4<bool> { return vec4<u32>(token) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(limit); }

// An infinite or undefined score comes of a cached number that f16 does not hold: each row that sees it has one, and its sum with others is
// no number either.
fn out_of_range(scores: vec4<f32>) -> bool {
  return IS_BF16 && (bitcast<u32>(scores.x + scores.y + scores.z + scores.w) & 0x7fffffffu) >= POSITIVE_INFINITY;
}

// Whether four scores are an event: in themselves, and from the reference on.
fn is_event(scores: vec4<f32>, above: vec4<f32>) -> bool {
  return most_of(above) > START + HEADROOM || out_of_range(scores);
}

// Four scores of a row.
fn scores_of(row: u32, quad: u32) -> vec4<f32> {
  var sum = slices_get(row * S_STRIDE + quad);
  for (var s = 1u; s < SLICES; s++) { sum += slices_get(s * S_SLICE + row * S_STRIDE + quad); }
  return sum;
}

fn probability(above: vec4<f32>) -> vec4<f32> {
  if (IS_BF16) { return exp2(above); }
  return exp2_or_nan(above);
}

fn packed(p: vec4<f32>) -> vec2<u32> { return vec2<u32>(bitcast<u32>(vec2<f16>(p.xy)), bitcast<u32>(vec2<f16>(p.zw))); }

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32,
  @builtin(subgroup_id) subgroup_index: u32, @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
  let part = workgroup.x;
  let scale_log2 = bitcast<f32>(plan[PLAN_SCALE]);
  let part_at = PLAN_PARTS + part * 8u;
  // Places in the schedule's order.
  let first_place = plan[part_at];
  let last_place = plan[part_at + 2u];

  var w: Work;
  w.row_base = workgroup.y * ROWS;
  w.head_kv = min(workgroup.z, H_KV - 1u); // of one head, 0: all that is multiplied by it goes
  w.s_q = plan[PLAN_S_Q];
  w.group = plan[PLAN_GROUP];
  w.block_shift = firstTrailingBit(plan[PLAN_BLOCK]);

  // Masked, so that a compiler knows the range and drops the checks of what is indexed with it.
  let me = subgroup_index & (SUBGROUPS - 1u);
  // scores: this subgroup's part of K, a slice of a tile of keys, and its rows
  let slice = me & (SLICES - 1u);
  let key_tile = (me / SLICES) & (KEY_TILES - 1u);
  let row_tile = (me / (SLICES * KEY_TILES)) & (ROW_TILES - 1u);
  let s_at = slice * S_SLICE + row_tile * 16u * S_STRIDE + key_tile * 4u;
  // stage: a lane's row and vector of its subgroup's columns of V, and of the columns behind V, which subgroups share by rows
  let own_row = min(subgroup_lane / OWN_VECS, TOKENS - 1u);
  let own_vec = subgroup_lane % OWN_VECS;
  let own_to = own_row * KV_STRIDE + own_vec;
  let rest_row = min(subgroup_lane / REST_VECS, TOKENS - 1u);
  let rest_from = (rest_row - own_row) * H_KV * VECS + subgroup_lane % REST_VECS;
  let rest_to = rest_row * KV_STRIDE + subgroup_lane % REST_VECS;
  // Q: neighbouring lanes read a row together
  let q_row = thread / Q_LANES;
  let q_vec = thread % Q_LANES;
  // softmax: who owns quads, a row and 4 keys each
  let owner = thread < ROWS * ROW_THREADS;
  let row = min(thread / ROW_THREADS, ROWS - 1u);
  let lane = thread % ROW_THREADS;

  for (var place = first_place; place <= last_place; place++) {
    let seq_at = plan[PLAN_SEQS_AT] + place * 4u;
    w.length = plan[seq_at];
    w.seq = plan[seq_at + 1u];
    w.begin = 0u;
    w.end = w.length;
    w.partial = -1;
    if (place == last_place) {
      w.end = min(w.length, plan[part_at + 3u] << w.block_shift);
      w.partial = bitcast<i32>(plan[part_at + 7u]);
    }
    if (place == first_place) {
      w.begin = plan[part_at + 1u] << w.block_shift;
      w.partial = bitcast<i32>(plan[part_at + 6u]);
    }
    w.table_at = plan[PLAN_TABLE_AT] + place * plan[PLAN_TABLE_STRIDE];

    if (thread == 0u) { atomicStore(&events, 0u); }
    // The first step's rows. A step's are in one block. Each thread looks it up by its own row, though: what a compiler knows to be the same for all goes
    // through registers for which all loads are waited for.
    var next_block = block_of(w, w.begin + own_row);
    var row_at = row_in(w, next_block, w.begin + own_row);
    #unroll v < OWN_LOADS
    var x_$v = vec4<u32>();
    #end
    #unroll v < REST_LOADS
    var z_$v = vec4<u32>();
    #end
    {
      let fetched = w.begin;
      FETCH
    }
    #if AHEAD
    row_at = row_in(w, next_block, w.begin + TOKENS + own_row);
    #end
    #if TWO_TILES
    #unroll v < OWN_LOADS
    var x2_$v = vec4<u32>();
    #end
    #unroll v < REST_LOADS
    var z2_$v = vec4<u32>();
    #end
    {
      let fetched = w.begin + TOKENS;
      FETCH_SECOND
    }
    row_at = row_in(w, next_block, w.begin + 2u * TOKENS + own_row);
    #end
    // Q by way of the KV tiles, as many rows at a time as they hold, all of them under way.
    #unroll k < Q_HELD
    var q_$k = Left();
    #end
    #unroll t < Q_ROUNDS
    #unroll v < Q_LOADS
    var y_$t_$v = vec4<u32>();
    #end
    #end
    if (w.begin < w.end) {
      #unroll t < Q_ROUNDS
      {
        const rows_at = $tu * Q_ROWS;
        FETCH_Q
      }
      #end
    }
    #unroll t < Q_ROUNDS
    workgroupBarrier();
    {
      var most = 0u;
      var sum = 0.0; // no less than that of the row's magnitudes
      #unroll v < Q_LOADS
      {
        let largest = magnitude(y_$t_$v);
        most = max(most, largest);
        sum += 8.0 * value_of(largest);
      }
      #end
      #unroll x < Q_SHUFFLES
      most = max(most, subgroupShuffleXor(most, 1u << $xu));
      sum += subgroupShuffleXor(sum, 1u << $xu);
      #end
      if (IS_BF16 && sum * abs(scale_log2) > REACH) { atomicOr(&events, OUT_OF_RANGE); }
      let exponent = row_exponent(most);
      let up = power_of_two(-exponent);
      if (q_vec == 0u) { set_scale($tu * Q_ROWS + q_row, scale_log2 * power_of_two(exponent)); }
      #unroll v < Q_LOADS
      if (q_vec + $vu * Q_LANES < VECS) { tile_put(q_row * KV_STRIDE + q_vec + $vu * Q_LANES, scaled(y_$t_$v, up)); }
      #end
    }
    workgroupBarrier();
    if (row_tile / (Q_ROWS / 16u) == $tu) {
      let q_from = row_tile % (Q_ROWS / 16u) * 16u * KV_STRIDE + slice * 2u * SLICE_STEPS;
      #unroll k < Q_HELD
      q_$k = subgroupMatrixLoad<Left, row_major>(&kv_tile, q_from + $ku * 2u, KV_STRIDE);
      #end
    }
    #if SPLIT_Q
    // The last of each slice's columns.
    for (var i = thread; i < Q_ROWS * SLICES * Q_LEFT; i += THREADS) {
      let r = i / (SLICES * Q_LEFT);
      let v = i % (SLICES * Q_LEFT);
      q_put(($tu * Q_ROWS + r) * Q_STRIDE + v, tile_get(r * KV_STRIDE + v / Q_LEFT * 2u * SLICE_STEPS + 2u * Q_HELD + v % Q_LEFT));
    }
    #end
    #end
    workgroupBarrier();
    #unroll r < ROW_TILES
    #unroll c < OUT_TILES
    var o_$r_$c = Result();
    #end
    #end
    var total = 0.0; // over this lane's tokens only
    // Keys from here on only some rows see.
    let partly_seen = select(w.end, min(w.end, w.length - min(w.length, w.s_q - 1u)), plan[PLAN_CAUSAL] != 0u);
    var outside = false;

    var token0 = w.begin;
    {
      const here = 0u;
      STAGE
    }
    #if TWO_TILES
    {
      const here = TILE_SIZE;
      STAGE_SECOND
    }
    var here = 0u; // the tile of the step at hand
    #else
    const here = 0u;
    #end
    if (owner && lane == 0u) {
      state_put(row, 0u, vec2<u32>(bitcast<u32>(scale_of(row)), bitcast<u32>(LOWEST)));
      state_put(row, 1u, vec2<u32>(limit_of(w, row), o_row(w, w.row_base + row)));
    }
    workgroupBarrier();

    #unroll j < LANE_QUADS
    let quad_$j = lane + $ju * ROW_THREADS;
    #end
    var s = Result();
    SCORES_AHEAD
    // The end comes with the events: a compiler that can tell how often a loop runs copies its body, past what the instruction cache holds.
    // Where INNER_LOOP is, an event ends a loop of steps that have none, which has nothing rare in it then.
    if (w.begin < w.end) { TURNS {
      var event = 0u;
      var p_sum = 0.0; // of the step
      #if INNER_LOOP
      STEPS {
      #end
      #if FETCH_FIRST
      FETCH_NEXT
      #end

      // scores
      {
        SCORES
        #if !FETCH_FIRST
        FETCH_NEXT
        #end
        subgroupMatrixStore<row_major>(&slices, s_at, s, S_STRIDE);
      }
      #if TWO_TILES
      let state_before = bitcast<vec2<f32>>(state_get(row, 0u));
      #end
      workgroupBarrier();

      // softmax, as if the reference were to stay
      #unroll j < LANE_QUADS
      var sum_$j = vec4<f32>();
      #end
      var state = vec2<f32>();
      if (ALL_OWN || owner) {
        #if TWO_TILES
        state = state_before;
        #else
        state = bitcast<vec2<f32>>(state_get(row, 0u));
        #end
        #unroll j < LANE_QUADS
        sum_$j = scores_of(row, quad_$j);
        #end
      }
      var raised = 0u;
      if (thread == 0u) {
        raised = select(0u, LOOK, token0 + TOKENS > partly_seen) | select(0u, LAST, token0 + TOKENS >= w.end);
      }
      p_sum = 0.0;
      if (ALL_OWN || owner) {
        #unroll j < LANE_QUADS
        let above_$j = fma(sum_$j, vec4<f32>(state.x), vec4<f32>(-state.y));
        if (is_event(sum_$j, above_$j)) { raised |= LOOK; }
        let p_$j = probability(above_$j);
        probs_put(row * P_STRIDE + quad_$j, packed(p_$j));
        p_sum += p_$j.x + p_$j.y + p_$j.z + p_$j.w;
        #end
      }
      if (raised != 0u) { atomicOr(&events, raised); }
      V_AHEAD
      event = workgroupUniformLoad(&events);
      #if INNER_LOOP
      if ((event & (LOOK | LAST)) != 0u) { break; }
      total += p_sum;
      OUTPUT_AHEAD
      NEXT
      }
      #end

      if ((event & LOOK) != 0u) {
        // The first step of a sequence, and those with keys that only some rows see, come this way too.
        if (token0 + TOKENS > partly_seen) {
          // What is not a number in a key's V must not reach rows that do not see it, since 0 * NaN is NaN. It reaches those that do through
          // the scores.
          for (var i = thread; i < TOKENS * V_VECS; i += THREADS) {
            let at = here + i / V_VECS * KV_STRIDE + i % V_VECS;
            let x = tile_get(at);
            tile_put(at, vec4<u32>(finite_half(x.x), finite_half(x.y), finite_half(x.z), finite_half(x.w)));
          }
        }
        let state = bitcast<vec2<f32>>(state_get(row, 0u));
        let limit = state_get(row, 1u).x;
        var highest = LOWEST;
        #unroll j < LANE_QUADS
        let seen_$j = visible(token0 + quad_$j * 4u, limit);
        let seen_sum_$j = select(vec4<f32>(), scores_of(row, quad_$j), seen_$j);
        let score_$j = select(vec4<f32>(LOWEST), seen_sum_$j * state.x, seen_$j);
        highest = max(highest, most_of(score_$j));
        if ((ALL_OWN || owner) && out_of_range(seen_sum_$j)) { atomicOr(&events, OUT_OF_RANGE); }
        #end
        #unroll x < ROW_SHUFFLES
        highest = max(highest, subgroupShuffleXor(highest, 1u << $xu));
        #end
        var factor = 1.0;
        var next = state.y;
        if ((ALL_OWN || owner) && highest > next + (START + HEADROOM)) {
          next = highest - START;
          if (state.y != LOWEST) {
            factor = exp2(state.y - next);
            atomicOr(&events, RESCALE);
          }
        }
        p_sum = 0.0;
        if (ALL_OWN || owner) {
          // Of each row: where scores are so large that their last bit counts, `fma` finds one too high that is not when rounded.
          total *= factor;
          #unroll j < LANE_QUADS
          let p_$j = probability(select(vec4<f32>(LOWEST), score_$j - next, seen_$j));
          probs_put(row * P_STRIDE + quad_$j, packed(p_$j));
          p_sum += p_$j.x + p_$j.y + p_$j.z + p_$j.w;
          #end
        }
        // All lanes of the row have read its state: its maximum comes of what each of them read.
        if ((ALL_OWN || owner) && lane == 0u) {
          set_scale(row, factor);
          state_put(row, 0u, vec2<u32>(bitcast<u32>(state.x), bitcast<u32>(next)));
        }
        let moved = workgroupUniformLoad(&events);
        if ((moved & OUT_OF_RANGE) != 0u) {
          outside = true;
          break;
        }
        if (thread == 0u) { atomicAnd(&events, ~(LOOK | RESCALE)); }
        if ((moved & RESCALE) != 0u) {
          // O by way of `slices`, a matrix a subgroup at a time.
          #unroll r < ROW_TILES
          #unroll c < OUT_TILES
          workgroupBarrier();
          subgroupMatrixStore<row_major>(&slices, me * 64u, o_$r_$c, 4u);
          workgroupBarrier();
          for (var i = thread; i < SUBGROUPS * 64u; i += THREADS) { slices_put(i, slices_get(i) * scale_of($ru * 16u + (i / 4u) % 16u)); }
          workgroupBarrier();
          o_$r_$c = subgroupMatrixLoad<Result, row_major>(&slices, me * 64u, 4u);
          #end
          #end
          #if TWO_TILES
          workgroupBarrier();
          #end
        }
      }
      total += p_sum;
      OUTPUT
      if ((event & LAST) != 0u) { break; }
      NEXT
    } }

    workgroupBarrier();
    // The end of a sequence.
    if (!outside) {
      #unroll x < ROW_SHUFFLES
      total += subgroupShuffleXor(total, 1u << $xu);
      #end
      if (owner && lane == 0u) {
        set_scale(row, inverse_of(total));
        if (w.row_base + row < w.s_q * w.group) { write_lse(w, w.row_base + row, bitcast<f32>(state_get(row, 0u).y), total); }
      }
      LEAVE
      #if IS_BF16
      workgroupBarrier();
      // A row that sees nothing has no sum.
      if (owner && lane == 0u && w.row_base + row < w.s_q * w.group && scale_of(row) > 0.0) { atomicOr(&events, OUT_OF_RANGE); }
      outside = (workgroupUniformLoad(&events) & OUT_OF_RANGE) != 0u;
      #end
    }
    if (outside) {
      storageBarrier();
      exact(w, thread, scale_log2);
    }
  }
}
