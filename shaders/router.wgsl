// The router of a mixture of experts: scores, the topK best experts of the best groups, and their weights.
//
// How work is cut: a workgroup takes every `workgroups.x`-th token; a thread every THREADS-th expert. Who is chosen is found by rank:
// an expert counts those that come before it, and one with fewer than topK before it writes itself in that place. So nothing is
// sorted, and a tie goes to the lower index.
//
// What lives where: scores and choice scores of the token's experts, and groups' marks, in workgroup memory.
//
// The launcher (src/webgpu/router.ts) puts the constants, the bindings, `load_bias` and workgroup_sum.wgsl in front.

struct Params { at: u32, tokens: u32, scale: f32 }

var<workgroup> scores: array<f32, EXPERTS>;
var<workgroup> choice: array<f32, EXPERTS>;
var<workgroup> marks: array<f32, GROUPS>;
var<workgroup> open_groups: array<u32, GROUPS>;
var<workgroup> chosen: array<u32, TOP_K>;

const GROUP_SIZE = EXPERTS / GROUPS;
const LOWEST = -3.4028234e38;

fn sigmoid(x: f32) -> f32 { return 1.0 / (1.0 + exp(clamp(-x, -80.0, 80.0))); }

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  for (var t = workgroup.x; t < p.tokens; t += workgroups.x) {
    let at = t * EXPERTS;
    if (SOFTMAX) {
      // Every thread finds the maximum for itself: a few hundred numbers that are in the cache.
      var most = LOWEST;
      for (var e = 0u; e < EXPERTS; e++) { most = max(most, logits[at + e]); }
      var sum = 0.0;
      for (var e = thread; e < EXPERTS; e += THREADS) {
        scores[e] = exp(max(logits[at + e] - most, -80.0));
        sum += scores[e];
      }
      let total = workgroup_sum(sum, thread);
      for (var e = thread; e < EXPERTS; e += THREADS) { scores[e] /= total; }
    } else {
      for (var e = thread; e < EXPERTS; e += THREADS) { scores[e] = sigmoid(logits[at + e]); }
    }
    for (var e = thread; e < EXPERTS; e += THREADS) { choice[e] = scores[e] + load_bias(e); }
    for (var i = thread; i < TOP_K; i += THREADS) { chosen[i] = 0u; }
    workgroupBarrier();

    for (var g = thread; g < GROUPS; g += THREADS) {
      var first = LOWEST;
      var second = LOWEST;
      for (var i = 0u; i < GROUP_SIZE; i++) {
        let value = choice[g * GROUP_SIZE + i];
        second = max(second, min(first, value));
        first = max(first, value);
      }
      marks[g] = select(first, first + second, TOP2 && GROUP_SIZE > 1u);
    }
    workgroupBarrier();
    for (var g = thread; g < GROUPS; g += THREADS) {
      var before = 0u;
      for (var other = 0u; other < GROUPS; other++) {
        if (marks[other] > marks[g] || (marks[other] == marks[g] && other < g)) { before++; }
      }
      open_groups[g] = select(0u, 1u, before < TOP_GROUPS);
    }
    workgroupBarrier();

    for (var e = thread; e < EXPERTS; e += THREADS) {
      if (open_groups[e / GROUP_SIZE] == 0u) { continue; }
      let own = choice[e];
      var before = 0u;
      for (var other = 0u; other < EXPERTS; other++) {
        let value = choice[other];
        if ((value > own || (value == own && other < e)) && open_groups[other / GROUP_SIZE] == 1u) { before++; }
      }
      if (before < TOP_K) { chosen[before] = e; }
    }
    workgroupBarrier();

    var sum = 0.0;
    if (NORMALIZE) { for (var i = 0u; i < TOP_K; i++) { sum += scores[chosen[i]]; } }
    for (var i = thread; i < TOP_K; i += THREADS) {
      ids[t * TOP_K + i] = chosen[i];
      weights[t * TOP_K + i] = scores[chosen[i]] / select(1.0, sum + 1e-20, NORMALIZE) * p.scale;
    }
    workgroupBarrier(); // before the next token's scores
  }
}
