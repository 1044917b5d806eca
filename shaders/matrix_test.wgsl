// What the matrix tier takes for granted, in exact numbers: 16 x 16 x 16 products of f16 with f32 sums, loaded from and
// stored to row-major arrays.
//
// Computes result = 2 left right. One subgroup; the operands are small integers that tell rows from columns, and one sum is
// larger than f16 holds. The operands are overwritten once they are loaded.
//
// The launcher (src/webgpu/matrix-test.ts) puts the enables, THREADS and `result` in front, and replaces LOAD_LEFT, LOAD_RIGHT
// and STORE_SUM by calls in the form of the syntax on trial.

var<workgroup> operands: array<f16, 512>;

fn left_value(row: u32, k: u32) -> f32 { return select(f32((row * 3u + k * 5u) % 11u) - 4.0, 96.0, row == 3u); }
fn right_value(k: u32, column: u32) -> f32 { return select(f32((k * 7u + column * 2u) % 13u) - 5.0, 64.0, column == 5u); }

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) thread: u32) {
  for (var i = thread; i < 256u; i += THREADS) {
    operands[i] = f16(left_value(i / 16u, i % 16u));
    operands[256u + i] = f16(right_value(i / 16u, i % 16u));
  }
  workgroupBarrier();
  let left = LOAD_LEFT;
  let right = LOAD_RIGHT;
  // A subgroup's lanes act in step: what they write now comes after what all have loaded, with no barrier in between.
  for (var i = thread; i < 512u; i += THREADS) { operands[i] = f16(99.0); }
  var sum: subgroup_matrix_result<f32, 16, 16>;
  sum = subgroupMatrixMultiplyAccumulate(left, right, sum);
  sum = subgroupMatrixMultiplyAccumulate(left, right, sum);
  STORE_SUM;
  // So that no compiler takes the writing for needless.
  workgroupBarrier();
  if (operands[511u - thread] != f16(99.0)) { result[thread] = -1.0; }
}
