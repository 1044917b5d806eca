// The matrix tier where f16 does not do: one sequence's part of the schedule again, in f32, from q and the cache to `out` or the partial
// results. Rare, not fast.
//
// How work is cut: by the workgroup that decode_matrix.wgsl gave the sequence to. Of its ROWS rows 4 at a time; a step has a quarter as many
// keys as there are threads: a thread makes a score, then EXACT_ITEMS items of 8 columns of O of one row.
//
// What lives where: O, and all four rows' maxima and sums, in registers; a step's scores in `slices`, one an element.
//
// Put behind decode_matrix.wgsl, in whose terms it is written.

// Segment of a token's cached row and where it is there.
fn kv_row(w: Work, token: u32) -> vec2<u32> { return row_in(w, block_of(w, token), token); }

fn dot8(a: vec4<u32>, b: vec4<u32>) -> f32 {
  var sum = 0.0;
  for (var i = 0u; i < 4u; i++) { sum += unpack_low(a[i]) * unpack_low(b[i]) + unpack_high(a[i]) * unpack_high(b[i]); }
  return sum;
}

fn exact(w: Work, thread: u32, scale_log2: f32) {
  let tokens = THREADS / 4u;
  let mine = thread / tokens;
  for (var row0 = 0u; row0 < ROWS; row0 += 4u) {
    var acc: array<vec4<f32>, 2u * EXACT_ITEMS>;
    for (var i = 0u; i < 2u * EXACT_ITEMS; i++) { acc[i] = vec4<f32>(); }
    var highest = vec4<f32>(LOWEST);
    var sum = vec4<f32>();
    let limit = limit_of(w, row0 + mine);
    let at = q_at(w, row0 + mine);
    for (var token0 = w.begin; token0 < w.end; token0 += tokens) {
      let token = token0 + thread % tokens;
      var score = LOWEST;
      if (token < limit) {
        let k = kv_row(w, token);
        var dot = 0.0;
        for (var i = 0u; i < VECS; i++) { dot += dot8(q[at + i], load_kv(k.x, k.y + i)); }
        score = dot * scale_log2;
      }
      slices_put(thread, vec4<f32>(score));
      workgroupBarrier();
      // Every thread follows the maximum and the sum of all 4 rows.
      var next = highest;
      for (var t = 0u; t < tokens; t++) {
        #unroll i < 4
        next[$iu] = max(next[$iu], slices_get($iu * tokens + t).x);
        #end
      }
      let factor = exp2(highest - next);
      highest = next;
      sum *= factor;
      for (var i = 0u; i < EXACT_ITEMS; i++) {
        let f = factor[((thread + i * THREADS) / V_VECS) % 4u];
        acc[2u * i] *= f;
        acc[2u * i + 1u] *= f;
      }
      for (var t = 0u; t < tokens && token0 + t < w.end; t++) {
        let k = kv_row(w, token0 + t);
        var p: vec4<f32>;
        #unroll i < 4
        p[$iu] = slices_get($iu * tokens + t).x;
        #end
        let visible = vec4<bool>(
          token0 + t < limit_of(w, row0), token0 + t < limit_of(w, row0 + 1u),
          token0 + t < limit_of(w, row0 + 2u), token0 + t < limit_of(w, row0 + 3u));
        p = select(vec4<f32>(), exp2_or_nan(p - highest), visible);
        sum += p;
        for (var i = 0u; i < EXACT_ITEMS; i++) {
          let item = thread + i * THREADS;
          let r = (item / V_VECS) % 4u;
          if (!visible[r]) { continue; }
          let v = load_kv(k.x, k.y + item % V_VECS);
          acc[2u * i] += p[r] * vec4<f32>(unpack_low(v.x), unpack_high(v.x), unpack_low(v.y), unpack_high(v.y));
          acc[2u * i + 1u] += p[r] * vec4<f32>(unpack_low(v.z), unpack_high(v.z), unpack_low(v.w), unpack_high(v.w));
        }
      }
      workgroupBarrier();
    }
    for (var i = 0u; i < EXACT_ITEMS; i++) {
      let item = thread + i * THREADS;
      let r = item / V_VECS;
      let row = w.row_base + row0 + r;
      if (r < 4u && row < w.s_q * w.group) {
        let inverse = inverse_of(sum[r]);
        write_quad(w, o_row(w, row), 2u * (item % V_VECS), acc[2u * i] * inverse);
        write_quad(w, o_row(w, row), 2u * (item % V_VECS) + 1u, acc[2u * i + 1u] * inverse);
        if (item % V_VECS == 0u) { write_lse(w, row, highest[r], sum[r]); }
      }
    }
  }
}
