// Chooses the next token of every sequence from its logits: repetition penalty, temperature, top-k, top-p, and a random number.
//
// Nothing is sorted. Tokens have an order, by descending logit and then by id, and what is asked for is always the place in it where
// a sum goes past a target: of ones for top-k, of probabilities for top-p and for the choice. A place is a logit and, among the
// tokens that have just that logit, a number of them. Its logit is found from the top bits down, 3 a turn: a thread adds up its
// tokens by those bits, the workgroup's sums say which of the 8 ranges the place is in. Sums are made in the same order every time.
//
// How work is cut: a workgroup a sequence; a thread takes every THREADS-th token.
//
// What lives where: 8 sums a thread in registers, then in workgroup memory. Logits are read from storage at every turn.
//
// The launcher (src/webgpu/sample.ts) puts the constants and the bindings in front; `args` holds from `at` on 5 words a sequence
// (temperature, top-k, top-p, penalty, random), where each one's seen ids begin (one entry more), and those ids.

struct Params { at: u32, sequences: u32, vocab: u32 }

// The first `ties` tokens, by id, of those with this key, and all with larger ones. `before`: the sum over those with larger ones.
struct Place { key: u32, ties: u32, before: f32 }

var<workgroup> range_sums: array<f32, 8u * THREADS>;
var<workgroup> thread_best: array<f32, THREADS>;
var<workgroup> thread_id: array<u32, THREADS>;

const LOWEST = -3.4028234e38;
const ALL = 0xffffffffu;

// Bits in the order of the numbers that they are. -0 is 0.
fn key_of(logit: f32) -> u32 {
  let bits = select(bitcast<u32>(logit), 0u, logit == 0.0);
  return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

fn logit_of(key: u32) -> f32 { return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u)); }

// The probability, up to a factor. The largest has 1.
fn weight_of(logit: f32, most: f32, temperature: f32) -> f32 {
  let x = (logit - most) / temperature;
  return select(exp(x), 0.0, x < -80.0);
}

// Where the sum reaches `target`, or, when `past`, exceeds it; at the last token that counts where rounding keeps it from there.
fn find(logits_at: u32, most: f32, temperature: f32, by_weight: bool, target_sum: f32, past: bool, thread: u32) -> Place {
  var place = Place(0u, 0u, 0.0);
  var last_sum = 0.0;
  for (var turn = 0u; turn < 11u; turn++) {
    let shift = 30u - 3u * turn;
    #unroll b < 8
    var sum_$b = 0.0;
    #end
    for (var i = thread; i < p.vocab; i += THREADS) {
      let logit = logits[logits_at + i];
      let bits = key_of(logit) >> shift;
      if (bits >> 3u != place.key) { continue; }
      let range = bits & 7u;
      var weight = 1.0;
      if (by_weight) { weight = weight_of(logit, most, temperature); }
      #unroll b < 8
      sum_$b += select(0.0, weight, range == $bu);
      #end
    }
    #unroll b < 8
    range_sums[$bu * THREADS + thread] = sum_$b;
    #end
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
      workgroupBarrier();
      if (thread < half) {
        for (var at = thread; at < 8u * THREADS; at += THREADS) { range_sums[at] += range_sums[at + half]; }
      }
    }
    workgroupBarrier();
    // From the largest down. The last that is not empty is taken where none reaches the target.
    var found = 0u;
    var before = place.before;
    var running = place.before;
    var done = false;
    for (var b = 0u; b < 8u; b++) {
      let range = 7u - b;
      let sum = range_sums[range * THREADS];
      if (!done && sum > 0.0) {
        found = range;
        before = running;
        last_sum = sum;
        running += sum;
        done = select(running >= target_sum, running > target_sum, past);
      }
    }
    workgroupBarrier(); // before the next turn's sums
    place = Place(place.key * 8u + found, 0u, before);
  }
  var each = 1.0;
  if (by_weight) { each = weight_of(logit_of(place.key), most, temperature); }
  let missing = (target_sum - place.before) / each;
  let count = u32(last_sum / each + 0.5);
  place.ties = clamp(u32(max(select(ceil(missing), floor(missing) + 1.0, past), 1.0)), 1u, max(count, 1u));
  return place;
}

fn within(place: Place, limit: Place) -> bool { return place.key > limit.key || (place.key == limit.key && place.ties <= limit.ties); }

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  for (var s = workgroup.x; s < p.sequences; s += workgroups.x) {
    let row_at = p.at + 5u * s;
    let temperature = bitcast<f32>(args[row_at]);
    let top_k = args[row_at + 1u];
    let top_p = bitcast<f32>(args[row_at + 2u]);
    let penalty = bitcast<f32>(args[row_at + 3u]);
    let random = bitcast<f32>(args[row_at + 4u]);
    let logits_at = s * p.vocab;

    if (penalty != 1.0) {
      let starts_at = p.at + 5u * p.sequences + s;
      let seen_at = p.at + 6u * p.sequences + 1u;
      for (var i = args[starts_at] + thread; i < args[starts_at + 1u]; i += THREADS) {
        let at = logits_at + args[seen_at + i];
        let logit = logits[at];
        logits[at] = select(logit * penalty, logit / penalty, logit > 0.0);
      }
      storageBarrier();
    }

    // The first of the largest.
    var best = LOWEST;
    var best_id = ALL;
    for (var i = thread; i < p.vocab; i += THREADS) {
      let logit = logits[logits_at + i];
      if (logit > best || best_id == ALL) {
        best = logit;
        best_id = i;
      }
    }
    thread_best[thread] = best;
    thread_id[thread] = best_id;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
      workgroupBarrier();
      if (thread < half) {
        let other = thread_best[thread + half];
        let other_id = thread_id[thread + half];
        if (other_id != ALL && (other > thread_best[thread] || (other == thread_best[thread] && other_id < thread_id[thread]))) {
          thread_best[thread] = other;
          thread_id[thread] = other_id;
        }
      }
    }
    workgroupBarrier();
    let most = thread_best[0];
    if (thread == 0u && temperature == 0.0) { out[s] = thread_id[0]; }
    workgroupBarrier();
    if (temperature != 0.0) {
      // What is left, and the sum of its probabilities.
      var limit = Place(0u, ALL, 0.0);
      if (top_k > 0u && top_k < p.vocab) { limit = find(logits_at, most, temperature, false, f32(top_k), false, thread); }
      var sum = 0.0;
      for (var i = thread; i < p.vocab; i += THREADS) {
        let logit = logits[logits_at + i];
        if (key_of(logit) > limit.key) { sum += weight_of(logit, most, temperature); }
      }
      var total = workgroup_sum(sum, thread);
      if (limit.ties != ALL) { total += f32(limit.ties) * weight_of(logit_of(limit.key), most, temperature); }
      if (top_p < 1.0) {
        let place = find(logits_at, most, temperature, true, top_p * total, false, thread);
        if (within(place, limit)) {
          limit = place;
          total = place.before + f32(place.ties) * weight_of(logit_of(place.key), most, temperature);
        }
      }
      var choice = find(logits_at, most, temperature, true, random * total, true, thread);
      if (!within(choice, limit)) { choice = limit; }

      // Its id: threads count tokens of that logit, each over ids of its own, and the one whose count goes past it looks again.
      let span = (p.vocab + THREADS - 1u) / THREADS;
      let end = min((thread + 1u) * span, p.vocab);
      var own = 0u;
      for (var i = thread * span; i < end; i++) { if (key_of(logits[logits_at + i]) == choice.key) { own++; } }
      thread_id[thread] = own;
      workgroupBarrier();
      var before = 0u;
      for (var other = 0u; other < thread; other++) { before += thread_id[other]; }
      if (before < choice.ties && choice.ties <= before + own) {
        for (var i = thread * span; i < end; i++) {
          if (key_of(logits[logits_at + i]) == choice.key) {
            before++;
            if (before == choice.ties) { out[s] = i; }
          }
        }
      }
      workgroupBarrier(); // before the next sequence
    }
  }
}
