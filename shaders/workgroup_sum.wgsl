// The sum of a number a thread, for all threads. Every thread of the workgroup must come here.

var<workgroup> thread_sums: array<f32, THREADS>;

fn workgroup_sum(value: f32, thread: u32) -> f32 {
  thread_sums[thread] = value;
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (thread < half) { thread_sums[thread] += thread_sums[thread + half]; }
  }
  workgroupBarrier();
  let sum = thread_sums[0];
  workgroupBarrier(); // before the next sum begins
  return sum;
}
