// Runs the decode and merge kernels on tiny problems and holds them against a float64 reference. See README.md.
//
// Paged cache with shuffled blocks, NaN wherever there is no token; the plan as src/schedule.ts, src/plan.ts and
// src/cuda/config.ts make it; guards around every output.
#include "params.cuh"
#include <dlfcn.h>
#include <math.h>
#include <algorithm>
#include <array>
#include <chrono>
#include <random>
#include <string>
#include <vector>

using std::string;
using std::vector;

struct Shape {
  string name;
  vector<int> lens;
  int parts = 1, h_q = 16, h_kv = 1, s_q = 1;
  bool causal = false;
  double q_std = 10;  // of q; keys are of 0.1: scores of about 1
  float outlier = 0;  // of V's dim 7, which q does not look at
};
struct Launch {
  string kernel;
  int threads = 384, cluster = 1;
  uint32_t box_tokens = 64, box_rows = 64;
  bool f16;
  int verbose = 0;  // wrong numbers to print
};
constexpr int COMBINE_THREADS = 256, FEW_SPLITS = 4;

// Memory with guards of a pattern at both ends.
template <class T> struct Guarded {
  static constexpr size_t G = 4096;
  uint8_t* raw;
  size_t n;
  explicit Guarded(size_t count, int fill = 0xff) : n(count * sizeof(T)) {
    raw = (uint8_t*)aligned_alloc(1024, (n + 2 * G + 1023) / 1024 * 1024);
    memset(raw, 0xa5, G), memset(raw + G, fill, n), memset(raw + G + n, 0xa5, G);
  }
  ~Guarded() { free(raw); }
  T* get() { return (T*)(raw + G); }
  T& operator[](size_t i) { return get()[i]; }
  bool intact() const {
    for (size_t i = 0; i < G; i++) if (raw[i] != 0xa5 || raw[G + n + i] != 0xa5) return false;
    return true;
  }
};

static bool run_case(const Shape& c, const Launch& l, uint64_t seed, bool defer) {
  const int b = c.lens.size(), G = c.h_q / c.h_kv, rows = c.s_q * G;
  std::mt19937_64 gen(1234 + seed);
  std::normal_distribution<double> normal;
  auto to16 = [&](double x) { return l.f16 ? emu::to_f16(x) : emu::to_bf16(x); };
  auto from16 = [&](uint16_t x) { return double(l.f16 ? emu::f16(x) : emu::bf16(x)); };

  // the cache: blocks in shuffled order, some more that nobody owns; NaN wherever there is no token
  vector<int> nb;
  int tot = 0, mx = 1;
  for (int n : c.lens) nb.push_back((n + 63) / 64), tot += nb.back(), mx = std::max(mx, nb.back());
  const int blocks = tot + 2;
  Guarded<uint16_t> kv(size_t(blocks) * 64 * c.h_kv * 576);
  Guarded<int> table(size_t(b) * mx);
  vector<int> perm(blocks);
  for (int i = 0; i < blocks; i++) perm[i] = i;
  std::shuffle(perm.begin(), perm.end(), gen);
  for (int i = 0; i < b * mx; i++) table[i] = 2147480000;
  int used = 0;
  auto kv_at = [&](int seq, int token, int h) { return kv.get() + ((size_t(table[seq * mx + token / 64]) * 64 + token % 64) * c.h_kv + h) * 576; };
  for (int s = 0; s < b; s++) {
    for (int k = 0; k < nb[s]; k++) table[s * mx + k] = perm[used++];
    for (int t = 0; t < c.lens[s]; t++)
      for (int h = 0; h < c.h_kv; h++)
        for (int d = 0; d < 576; d++) kv_at(s, t, h)[d] = to16(d == 7 && c.outlier ? c.outlier : normal(gen) * 0.1);
  }
  vector<uint16_t> q(size_t(b) * c.s_q * c.h_q * 576);
  for (auto& x : q) x = to16(normal(gen) * c.q_std);
  if (c.outlier) for (size_t i = 7; i < q.size(); i += 576) q[i] = 0;
  Guarded<uint16_t> qq(q.size());  // rows of a KV head together
  for (int s = 0; s < b; s++)
    for (int h = 0; h < c.h_kv; h++)
      for (int r = 0; r < rows; r++)
        memcpy(qq.get() + ((size_t(s) * c.h_kv + h) * rows + r) * 576, &q[((size_t(s) * c.s_q + r / G) * c.h_q + h * G + r % G) * 576], 1152);

  // the plan
  int tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
  tiles = (tiles + l.cluster - 1) / l.cluster * l.cluster;
  vector<int> units;
  int T = 0;
  for (int n : c.lens) units.push_back(std::max(1, (n + 63) / 64)), T += units.back();
  int P = std::min(c.parts, T);
  { const int per = (T + P - 1) / P; P = (T + per - 1) / per; }
  vector<std::array<int, 8>> part_rows;
  vector<int> splits(b, 0), first(b, -1);
  for (int p = 0, seq = 0, blk = 0; p < P; p++) {
    int left = (p + 1) * T / P - p * T / P;
    std::array<int, 8> r{seq, blk, 0, 0, 0, 0, 0, 0};
    for (;;) {
      if (first[seq] < 0) first[seq] = p;
      const int t = std::min(left, units[seq] - blk);
      splits[seq]++, left -= t;
      if (left == 0) {
        r[2] = seq, r[3] = blk + t, blk += t;
        if (blk == units[seq]) seq++, blk = 0;
        break;
      }
      seq++, blk = 0;
    }
    part_rows.push_back(r);
  }
  vector<int> flat;
  vector<std::array<int, 4>> seqs;
  for (int s = 0; s < b; s++) seqs.push_back({c.lens[s], s, splits[s], 2 * first[s] + (part_rows[first[s]][0] == s ? 0 : 1)});
  for (int k = 0; k < P; k++) {
    auto& r = part_rows[k];
    r[4] = c.lens[r[0]];
    r[5] = r[1] < nb[r[0]] ? table[r[0] * mx + r[1]] : 0;
    for (int z = 6; z < 8; z++) {
      const int s = z == 6 ? r[0] : r[2];
      r[z] = splits[s] == 1 ? -1 : k == first[s] ? seqs[s][3] : 2 * k;
    }
    flat.insert(flat.end(), r.begin(), r.end());
  }
  for (auto& r : seqs) flat.insert(flat.end(), r.begin(), r.end());
  int items = 0;
  for (int s = 0; s < b; s++) {
    const int n = splits[s];
    if (n == 1) continue;
    const int lg = n <= FEW_SPLITS ? 7 : n <= 8 ? 0 : n <= 16 ? 1 : n <= 32 ? 2 : 3;
    const int step = lg == 7 ? 32 : 8 >> lg, end = (lg == 7 ? 1 : 2) * c.s_q * c.h_q;
    for (int u = 0; u < end; u += step, items++) for (int x : {s, u << 3 | lg, seqs[s][3], n}) flat.push_back(x);
  }
  Guarded<int> plan(flat.size());
  memcpy(plan.get(), flat.data(), flat.size() * 4);

  Guarded<uint16_t> out(size_t(b) * c.s_q * c.h_q * 512);
  Guarded<float> lse(size_t(b) * c.h_q * c.s_q);
  Guarded<uint16_t> partial_out(size_t(2) * P * c.h_kv * rows * 512);
  Guarded<float4> partial_info(size_t(2) * P * c.h_kv * rows);
  const vector<uint64_t> kv_dims{64, 64, 9, uint64_t(c.h_kv), uint64_t(blocks)}, kv_strides{uint64_t(c.h_kv) * 1152, 128, 1152, uint64_t(c.h_kv) * 64 * 1152};
  const vector<uint64_t> q_dims{64, uint64_t(b) * c.h_kv * rows, 9}, q_strides{1152, 128};
  DecodeParams dp{};
  dp.kv_low = emu::encode(kv.get(), kv_dims, kv_strides, {64, l.box_tokens, 5, 1, 1});
  dp.kv_high = emu::encode(kv.get(), kv_dims, kv_strides, {64, l.box_tokens, 4, 1, 1});
  dp.q_low = emu::encode(qq.get(), q_dims, q_strides, {64, l.box_rows, 5});
  dp.q_high = emu::encode(qq.get(), q_dims, q_strides, {64, l.box_rows, 4});
  const double scale = 1 / sqrt(576.0);
  dp.plan = Plan{plan.get(), plan.get() + 8 * P, plan.get() + 8 * P + 4 * b, table.get(), mx, rows, G, c.h_kv, c.s_q, c.causal, float(scale * M_LOG2E)};
  dp.out = out.get(), dp.lse = lse.get(), dp.partial_out = partial_out.get(), dp.partial_info = partial_info.get();
  CombineParams cp{dp.plan, dp.out, dp.lse, dp.partial_out, dp.partial_info};

  const auto t0 = std::chrono::steady_clock::now();
  emu::options.seed = seed, emu::options.defer = defer, emu::options.tma_delay = seed ? 1 + seed % 7 * 5 : 3;
  emu::stats = {};
  auto decode = (void (*)(const DecodeParams))dlsym(RTLD_DEFAULT, l.kernel.c_str());
  auto combine = (void (*)(const CombineParams))dlsym(RTLD_DEFAULT, l.f16 ? "combine_f16" : "combine_bf16");
  if (!decode || !combine) { fprintf(stderr, "no kernel %s\n", l.kernel.c_str()); exit(2); }
  emu::dynamic_bytes = emu::DYNAMIC;
  emu::launch({unsigned(tiles), unsigned(P), unsigned(c.h_kv)}, l.threads, l.cluster, [&] { decode(dp); });
  const emu::Stats after = emu::stats;
  emu::dynamic_bytes = 0;
  if (items) emu::launch({unsigned(items), 1, 1}, COMBINE_THREADS, 1, [&] { combine(cp); });
  const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - t0).count();

  // reference
  double worst = 0, worst_lse = 0, worst_excess = 0;
  int bad = 0, bad_lse = 0, said = 0;
  for (int s = 0; s < b; s++)
    for (int t = 0; t < c.s_q; t++)
      for (int h = 0; h < c.h_q; h++) {
        const int L = c.lens[s], limit = c.causal ? L - (c.s_q - 1 - t) : L;
        const uint16_t* qr = &q[((size_t(s) * c.s_q + t) * c.h_q + h) * 576];
        vector<double> x(std::max(0, limit)), o(512, 0.0);
        double most = -INFINITY, sum = 0;
        for (int k = 0; k < limit; k++) {
          const uint16_t* kr = kv_at(s, k, h / G);
          double a = 0;
          for (int d = 0; d < 576; d++) a += from16(qr[d]) * from16(kr[d]);
          x[k] = a * scale, most = std::max(most, x[k]);
        }
        for (int k = 0; k < limit; k++) {
          const double w = exp(x[k] - most);
          sum += w;
          const uint16_t* vr = kv_at(s, k, h / G);
          for (int d = 0; d < 512; d++) o[d] += w * from16(vr[d]);
        }
        const double want_lse = limit > 0 ? most + log(sum) : INFINITY, got_lse = lse[(size_t(s) * c.h_q + h) * c.s_q + t];
        const double dl = std::isinf(want_lse) && want_lse == got_lse ? 0 : fabs(got_lse - want_lse);
        if (!(dl <= 1e-4)) {
          bad_lse++;
          if (l.verbose && said++ < l.verbose) printf("    lse seq %d token %d head %d: %g, want %g\n", s, t, h, got_lse, want_lse);
        }
        worst_lse = std::max(worst_lse, std::isnan(dl) ? INFINITY : dl);
        for (int d = 0; d < 512; d++) {
          const double want = limit > 0 ? o[d] / sum : 0, got = from16(out[((size_t(s) * c.s_q + t) * c.h_q + h) * 512 + d]);
          double e = fabs(got - want);
          if (std::isnan(e)) e = INFINITY;
          worst = std::max(worst, e);
          worst_excess = std::max(worst_excess, e / (8e-4 + 0.02 * fabs(want)));
          if (!(e <= 8e-4 + 0.02 * fabs(want))) {
            bad++;
            if (l.verbose && said++ < l.verbose) printf("    out seq %d token %d head %d dim %d: %g, want %g\n", s, t, h, d, got, want);
          }
        }
      }
  const bool guards = out.intact() && lse.intact() && partial_out.intact() && partial_info.intact() && kv.intact() && table.intact() && qq.intact() && plan.intact();
  const bool ok = !bad && !bad_lse && guards;
  printf("%s %-12s seed %-3lu %s parts %d tiles %d: out err %.2e (%.0f%% of tolerance, %d over), lse err %.2e (%d over)%s; %lu wgmma, %lu TMA (%lu outside), %lu rounds, %.0f ms\n",
         ok ? "PASS" : "FAIL", c.name.c_str(), seed, defer ? "deferred" : "eager   ", P, tiles, worst, worst_excess * 100, bad, worst_lse, bad_lse, guards ? "" : ", GUARDS BROKEN",
         after.wgmma / 128, after.tma, after.tma_outside, after.rounds, ms);
  fflush(stdout);
  return ok;
}

static vector<int> ints(const string& s) {
  vector<int> r;
  for (size_t i = 0; i < s.size();) { size_t j = s.find(',', i); if (j == string::npos) j = s.size(); r.push_back(atoi(s.substr(i, j - i).c_str())); i = j + 1; }
  return r;
}
int main(int argc, char** argv) {
  Launch l{};
  Shape custom;
  string which;
  int seeds = 0, only_seed = -1;
  for (int i = 1; i < argc; i++) {
    const string a = argv[i];
    auto value = [&]() -> string {
      if (++i < argc) return argv[i];
      fprintf(stderr, "%s takes a value\n", a.c_str());
      exit(2);
    };
    if (a == "--kernel") l.kernel = value();
    else if (a == "--case") which = value();
    else if (a == "--seeds") seeds = atoi(value().c_str());
    else if (a == "--seed") only_seed = atoi(value().c_str());
    else if (a == "--verbose") l.verbose = atoi(value().c_str());
    else if (a == "--loose") emu::options.loose = true;
    else if (a == "--lens") custom.lens = ints(value());
    else if (a == "--parts") custom.parts = atoi(value().c_str());
    else if (a == "--hq") custom.h_q = atoi(value().c_str());
    else if (a == "--hkv") custom.h_kv = atoi(value().c_str());
    else if (a == "--sq") custom.s_q = atoi(value().c_str());
    else if (a == "--causal") custom.causal = true;
    else {
      fprintf(stderr, "what is %s?\n", a.c_str());
      return 2;
    }
  }
  l.f16 = l.kernel.find("_f16") != string::npos;
  if (l.kernel.find("_pair") != string::npos) l.cluster = 2;
  if (l.kernel.find("_few") != string::npos) l.threads = 320, l.box_tokens = 32, l.box_rows = 16;
  const int n = l.cluster * l.box_rows;  // rows of a KV head, where nothing else is said
  vector<Shape> cases{
      {"one-block", {64}, 1, n},
      {"tail20", {20}, 1, n},
      {"one-token", {1}, 1, n},
      {"rows-16", {150}, 1, 16},
      {"rows-5", {70}, 1, 5},
      {"rows-15", {70, 130}, 2, 5, 1, 3, true},
      {"five-blocks", {300}, 1, n},
      {"two-3parts", {200, 330}, 3, n},
      {"split-6", {370}, 6, n},  // the merge's other way
      {"causal", {130, 65}, 2, n / 2, 1, 2, true},
      {"causal-short", {1, 2, 64}, 1, n / 2, 1, 2, true},  // a row that sees nothing
      {"empty", {0}, 1, n},
      {"empty-mid", {70, 0, 0, 129}, 2, n},
      {"many-seqs", {10, 65, 128, 1, 200, 63, 64}, 2, n},
      {"two-heads", {100, 190}, 2, 2 * n, 2},
      {"heads-2tok", {100, 190}, 2, n, 2, 2, true},
      {"big", {400}, 1, n, 1, 1, false, 150},  // the running maximum moves
      {"big-split", {400, 100}, 3, n, 1, 1, false, 150},
      {"outlier", {384}, 6, n, 1, 1, false, 10, 3e4f},  // beside small numbers, in partial results
      {"unseen-split", {129}, 3, n / 2, 1, 2, true},    // a row that sees nothing of the last part
      {"split-18", {1150}, 18, 16},                     // warps that share half a row
      {"split-35", {2240, 50}, 36, 16, 2, 2, true},
  };
  // Rows that see nothing of the last part, of two, of any: more than the kernel of few rows has.
  if (n > 16) cases.push_back({"unseen-parts", {130}, 3, 1, 1, 140, true});
  if (!custom.lens.empty()) {
    custom.name = "custom";
    cases = {custom};
  }
  int count = 0, failed = 0;
  for (auto& c : cases) {
    if (!which.empty() && c.name != which) continue;
    for (int seed = std::max(only_seed, 0); seed <= (only_seed >= 0 ? only_seed : seeds); seed++) {
      for (int defer = 0; defer < 2; defer++) {
        if (seed > 0 && defer != seed % 2) continue;
        count++;
        failed += !run_case(c, l, seed, defer);
      }
    }
  }
  printf("%s%s: %d passed, %d failed\n", l.kernel.c_str(), emu::options.loose ? ", warps apart" : "", count - failed, failed);
  return count > 0 && failed == 0 ? 0 : 1;
}
