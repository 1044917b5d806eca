// Sums over LANES neighbouring threads, VALUES a thread: value v of a thread is at v * THREADS + thread. Afterwards the first of the
// neighbours has them. Every thread of the workgroup must come here.

var<workgroup> sums: array<f32, THREADS * VALUES>;

fn add_lanes(thread: u32) {
  let lane = thread % LANES;
  for (var half = LANES / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) {
      for (var at = thread; at < THREADS * VALUES; at += THREADS) { sums[at] += sums[at + half]; }
    }
  }
  workgroupBarrier();
}
