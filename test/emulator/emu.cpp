#include "emu.h"
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <map>
#include <string>
#include <stddef.h>

namespace emu {
Fiber* cur;
uint3 grid_dim, block_dim;
uint32_t dynamic_bytes = DYNAMIC;
Options options;
Stats stats;

struct Job { Map map; Block* to; uint32_t dst, bar; std::vector<int> at; uint64_t due; Loc loc; };
struct Cluster {
  std::vector<Block*> blocks;
  std::vector<Fiber*> fibers;
  std::vector<Warp*> warps;
  std::vector<Job> jobs;
  Gate gate;
  int live = 0, most = 0;
};
static Cluster* cluster;
static uint64_t round_number;
static void* main_sp;
static const std::function<void()>* kernel_call;

static uint64_t rng_state = 1;
static uint64_t rng() { rng_state ^= rng_state << 13; rng_state ^= rng_state >> 7; rng_state ^= rng_state << 17; return rng_state * 0x2545F4914F6CDD1Dull >> 16; }
static double uniform() { return (rng() & 0xffffff) / double(1 << 24); }

extern "C" void emu_switch(void** save, void** load);
asm(R"(
.text
.globl emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

static const char* file(const Loc& l) { const char* s = strrchr(l.file_name(), '/'); return s ? s + 1 : l.file_name(); }
static void dump() {
  if (!cluster) return;
  for (Block* b : cluster->blocks) {
    fprintf(stderr, " block (%u,%u,%u) rank %u\n", b->idx.x, b->idx.y, b->idx.z, b->rank);
    for (Warp* w : cluster->warps) {
      std::map<std::string, std::vector<int>> by;
      for (Fiber* f : cluster->fibers) {
        if (f->warp != w || f->block != b) continue;
        char s[300];
        if (f->wait == Fiber::DONE) snprintf(s, sizeof s, "done");
        else if (f->wait == Fiber::READY) snprintf(s, sizeof s, "ready");
        else if (f->wait == Fiber::MBAR) {
          const Mbar& m = b->mbars[f->bar / 8];
          snprintf(s, sizeof s, "%s:%u barrier at +%u (phase now %u, %lu over; pending %d of %d, tx %ld), wants parity %u over", file(f->loc), f->loc.line(), f->bar - BASE, m.phase, m.phases,
                   m.pending, m.count, m.tx, f->parity);
        } else if (f->wait == Fiber::WGMMA) snprintf(s, sizeof s, "%s:%u %s (%d of 128 threads)", file(f->loc), f->loc.line(), f->what, f->group->commits[f->need]);
        else snprintf(s, sizeof s, "%s:%u %s (%d arrived of %d)", file(f->loc), f->loc.line(), f->what, f->gate->arrived, f->gate->need);
        by[s].push_back(f->index);
      }
      for (auto& [s, who] : by) fprintf(stderr, "  warp %2d, %2zu threads (from %d): %s\n", w->index, who.size(), who[0], s.c_str());
    }
    for (size_t i = 0; i < b->mbars.size(); i++)
      if (b->mbars[i].init) fprintf(stderr, "  mbarrier +%zu: phase %u, %lu over, pending %d of %d, tx %ld\n", i * 8 - BASE, b->mbars[i].phase, b->mbars[i].phases, b->mbars[i].pending, b->mbars[i].count, b->mbars[i].tx);
  }
  for (Job& j : cluster->jobs) fprintf(stderr, "  TMA in flight to +%u of rank %u\n", j.dst - BASE, j.to->rank);
}
void die(const Loc& loc, const char* format, ...) {
  va_list a;
  va_start(a, format);
  fprintf(stderr, "EMU %s:%u: ", file(loc), loc.line());
  vfprintf(stderr, format, a);
  if (cur) fprintf(stderr, " [block %u,%u,%u thread %d]", cur->block->idx.x, cur->block->idx.y, cur->block->idx.z, cur->index);
  fprintf(stderr, " round %lu\n", round_number);
  va_end(a);
  dump();
  _exit(3);
}
static void on_signal(int s, siginfo_t* info, void*) {
  fprintf(stderr, "EMU signal %d at %p", s, info->si_addr);
  if (cur) fprintf(stderr, " [block %u,%u,%u thread %d]", cur->block->idx.x, cur->block->idx.y, cur->block->idx.z, cur->index);
  fprintf(stderr, "\n");
  _exit(4);
}

// fibers
constexpr size_t STACK = 256 << 10;
static std::vector<uint8_t*> stacks;
static void fiber_main() {
  (*kernel_call)();
  Fiber* f = cur;
  if (!f->open.empty() || !f->groups.empty()) die(Loc::current(), "a thread ends with wgmma pending");
  copy_wait();
  f->wait = Fiber::DONE;
  auto left = [](Gate& g, int live) {
    g.need = live;
    if (g.arrived && g.arrived >= live) { g.arrived = 0; g.result = g.any; g.any = false; g.gen++; }
  };
  left(f->warp->gate, --f->warp->live);
  --f->block->live;
  left(f->block->named[0], f->block->live);
  left(cluster->gate, --cluster->live);
  emu_switch(&f->sp, &main_sp);
  abort();
}
static void start(Fiber* f, int n) {
  while (int(stacks.size()) <= n) {
    uint8_t* s = (uint8_t*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s == MAP_FAILED) abort();
    mprotect(s, 4096, PROT_NONE);
    stacks.push_back(s);
  }
  void** top = (void**)(stacks[n] + STACK - 64);
  top -= 7;
  top = (void**)((uintptr_t)top & ~15ull);
  for (int i = 0; i < 6; i++) top[i] = nullptr;
  top[6] = (void*)fiber_main;
  f->sp = top;
}
static void suspend() { emu_switch(&cur->sp, &main_sp); }
void yield() { cur->wait = Fiber::READY; suspend(); }
void maybe_yield() { if (options.seed && uniform() < 0.1) yield(); }

bool gate_wait(Gate& g, int need, const char* what, const Loc& loc, bool value) {
  g.any |= value;
  g.need = need;
  if (++g.arrived >= need) {
    g.arrived = 0;
    g.result = g.any;
    g.any = false;
    g.gen++;
    return g.result;
  }
  Fiber* f = cur;
  f->wait = Fiber::GATE, f->gate = &g, f->gen = g.gen, f->what = what, f->loc = loc;
  suspend();
  return g.result;  // the next generation cannot be over before this thread arrives
}
static bool ready(Fiber* f) {
  switch (f->wait) {
    case Fiber::READY: return true;
    case Fiber::GATE: return f->gate->gen != f->gen;
    case Fiber::WGMMA: return f->group->commits[f->need] == 128;
    case Fiber::MBAR: return f->block->mbars[f->bar / 8].phase != f->parity;
    default: return false;
  }
}
void warp_sync(const char* kind, const Loc& loc) {
  Warp& w = *cur->warp;
  if (w.gate.arrived == 0) w.kind = kind, w.line = loc.line();
  else if (strcmp(w.kind, kind) || w.line != loc.line()) die(loc, "warp %d diverged: %s at line %u, %s at line %u", w.index, kind, loc.line(), w.kind, w.line);
  gate_wait(w.gate, w.live, kind, loc);
}
Slot* warp_exchange(const char* kind, const Slot& mine, const Loc& loc) {
  Warp& w = *cur->warp;
  // Lanes in one exchange agree on the generation: it moves only when all have arrived.
  Slot* all = w.slots[w.gate.gen & 1];
  all[cur->index % 32] = mine;
  warp_sync(kind, loc);
  return all;
}

// shared memory
uint32_t address(const void* p, const Loc& loc) {
  const ptrdiff_t d = (const uint8_t*)p - cur->block->shared;
  if (d < BASE || d > ptrdiff_t(BASE + dynamic_bytes)) die(loc, "not an address in this block's dynamic shared memory: %p", p);
  return d;
}
static uint8_t* at(Block* b, uint32_t a, uint32_t bytes, const Loc& loc) {
  if (a < BASE || a + bytes > BASE + dynamic_bytes + SPARE) die(loc, "shared address +%d out of range", int(a - BASE));
  return b->shared + a;
}
uint8_t* at(uint32_t a, uint32_t bytes, const Loc& loc) { return at(cur->block, a, bytes, loc); }

// mbarriers
static Mbar& mbar(Block* b, uint32_t bar, const Loc& loc) {
  if (bar % 8 || bar < BASE || bar >= BASE + DYNAMIC) die(loc, "not a barrier: +%d", int(bar - BASE));
  Mbar& m = b->mbars[bar / 8];
  if (!m.init) die(loc, "barrier +%u is not initialised", bar - BASE);
  return m;
}
static void settle(Mbar& m) {
  if (m.pending == 0 && m.tx == 0) m.phase ^= 1, m.phases++, m.pending = m.count;
}
void mbar_init(uint32_t bar, uint32_t count, const Loc& loc) {
  if (bar % 8 || bar < BASE || bar >= BASE + DYNAMIC) die(loc, "not a barrier: +%d", int(bar - BASE));
  if (count == 0) die(loc, "a barrier of no arrivals");
  cur->block->mbars[bar / 8] = {true, 0, int(count), int(count), 0, 0};
  memset(cur->block->shared + bar, 0xff, 8);
}
void mbar_arrive(Block* b, uint32_t bar, int count, long expect, const Loc& loc) {
  if (b->live == 0) die(loc, "arrival at a block that has ended");
  Mbar& m = mbar(b, bar, loc);
  if (m.pending < count) die(loc, "barrier +%u: %d arrivals, %d pending of %d", bar - BASE, count, m.pending, m.count);
  m.tx += expect;
  m.pending -= count;
  settle(m);
}
void mbar_wait(uint32_t bar, uint32_t parity, const Loc& loc) {
  if (parity > 1) die(loc, "parity %u", parity);
  if (mbar(cur->block, bar, loc).phase != parity) return;
  Fiber* f = cur;
  f->wait = Fiber::MBAR, f->bar = bar, f->parity = parity, f->loc = loc;
  suspend();
}
Block* peer(uint32_t rank, const Loc& loc) {
  if (rank >= cluster->blocks.size()) die(loc, "no block %u in the cluster", rank);
  return cluster->blocks[rank];
}

bool named(int id, int threads, const Loc& loc, bool value) {
  if (id < 0 || id > 15 || threads % 32) die(loc, "named barrier %d of %d", id, threads);
  Gate& g = cur->block->named[id];
  if (g.arrived && g.need != threads) die(loc, "named barrier %d: %d threads, others say %d", id, threads, g.need);
  static char names[16][24];
  snprintf(names[id], 24, "named barrier %d", id);
  return gate_wait(g, threads, names[id], loc, value);
}
void cluster_sync(const Loc& loc) { gate_wait(cluster->gate, cluster->live, "cluster barrier", loc); }

// TMA
constexpr size_t ELEMENT = 2;
CUtensorMap encode(void* base, std::vector<uint64_t> dims, std::vector<uint64_t> strides, std::vector<uint32_t> box) {
  const Loc loc = Loc::current();
  Map m{};
  m.base = (uint8_t*)base, m.rank = dims.size();
  if (strides.size() + 1 != dims.size() || box.size() != dims.size()) die(loc, "tensor map: ranks");
  if ((uintptr_t)base % 16) die(loc, "tensor map: base");
  for (size_t i = 0; i < dims.size(); i++) {
    m.dims[i] = dims[i], m.box[i] = box[i];
    if (box[i] == 0 || box[i] > 256 || dims[i] == 0) die(loc, "tensor map: box or dim %zu", i);
    if (i) { m.strides[i - 1] = strides[i - 1]; if (strides[i - 1] % 16) die(loc, "tensor map: stride"); }
  }
  if (box[0] * ELEMENT > 128) die(loc, "tensor map: inner box");
  CUtensorMap r{};
  memcpy((void*)&r, &m, sizeof m);
  return r;
}
static size_t box_bytes(const Map& m) {
  size_t n = ELEMENT;
  for (int i = 0; i < m.rank; i++) n *= m.box[i];
  return n;
}
static void apply(Job& j) {
  const Map& m = j.map;
  const size_t inner = m.box[0] * ELEMENT, rows = box_bytes(m) / inner;
  if (inner != 128) die(j.loc, "TMA: inner box of %zu bytes under 128-byte swizzle is not emulated", inner);
  if (j.to->live == 0) die(j.loc, "TMA into a block that has ended");
  uint8_t* shared = at(j.to, j.dst, box_bytes(m), j.loc);
  bool inside_any = false;
  for (size_t r = 0; r < rows; r++) {
    size_t rest = r;
    bool inside = true;
    const uint8_t* from = m.base;
    for (int d = 1; d < m.rank; d++) {
      const int64_t c = int64_t(j.at[d]) + int64_t(rest % m.box[d]);
      rest /= m.box[d];
      if (c < 0 || c >= int64_t(m.dims[d])) inside = false;
      else from += c * m.strides[d - 1];
    }
    for (uint32_t e = 0; e < m.box[0]; e++) {
      const int64_t c = int64_t(j.at[0]) + e;
      const uint32_t linear = j.dst + r * inner + e * ELEMENT, offset = (linear ^ ((linear >> 7 & 7) << 4)) - j.dst;
      const bool in = inside && c >= 0 && c < int64_t(m.dims[0]);
      inside_any |= in;
      if (in) memcpy(shared + offset, from + c * ELEMENT, ELEMENT);
      else memset(shared + offset, 0, ELEMENT);
    }
  }
  if (!inside_any) stats.tma_outside++;
  Mbar& b = mbar(j.to, j.bar, j.loc);
  b.tx -= box_bytes(m);
  settle(b);
}
void tma(uint32_t dst, const CUtensorMap* map, uint32_t bar, int mask, std::vector<int> where, const Loc& loc) {
  maybe_yield();
  Job j;
  memcpy(&j.map, map, sizeof j.map);
  if (where.size() != j.map.rank) die(loc, "TMA: %zu coordinates for rank %d", where.size(), j.map.rank);
  if (dst % 1024) die(loc, "TMA: destination +%u is not aligned", dst - BASE);
  j.dst = dst, j.bar = bar, j.at = where, j.loc = loc;
  const uint32_t own = cur->block->rank;
  if (mask >> cluster->blocks.size()) die(loc, "multicast mask %x", mask);
  for (uint32_t r = 0; r < cluster->blocks.size(); r++) {
    if (mask ? !(mask >> r & 1) : r != own) continue;
    j.to = cluster->blocks[r];
    mbar(j.to, bar, loc);
    j.due = round_number + (options.seed ? rng() % (options.tma_delay + 1) : options.tma_delay);
    if (options.seed && rng() % 8 == 0) j.due += 200;
    if (j.to->live == 0) die(loc, "TMA into a block that has ended");
    memset(at(j.to, dst, box_bytes(j.map), loc), 0xff, box_bytes(j.map));
    cluster->jobs.push_back(j);
    stats.tma++;
  }
}
static void run_jobs() {
  for (size_t i = 0; i < cluster->jobs.size();) {
    if (cluster->jobs[i].due > round_number) { i++; continue; }
    Job j = cluster->jobs[i];
    cluster->jobs.erase(cluster->jobs.begin() + i);
    apply(j);
  }
}
void copy4(uint32_t dst, const void* src, const Loc& loc) {
  if (dst % 4 || (uintptr_t)src % 4) die(loc, "cp.async: misaligned");
  memset(at(dst, 4, loc), 0xff, 4);
  at(dst, 4, loc);
  cur->copies.push_back({dst, src});
}
void copy_wait() {
  for (auto& c : cur->copies) memcpy(cur->block->shared + c.dst, c.src, 4);
  cur->copies.clear();
}

// wgmma
static uint32_t element(uint64_t desc, int mn, int k, bool transposed) {
  const uint32_t start = (desc & 0x3fff) << 4, leading = (desc >> 16 & 0x3fff) << 4, stride = (desc >> 32 & 0x3fff) << 4;
  const int mode = desc >> 62;  // 0: none, 1: 128, 2: 64, 3: 32 bytes
  const int span = mode == 0 ? 16 : mode == 1 ? 128 : mode == 2 ? 64 : 32;
  uint32_t a = start;
  if (!transposed) {
    if (mode == 0) a += mn / 8 * stride + k / 8 * leading + mn % 8 * 16 + k % 8 * 2;
    else a += mn / 8 * stride + mn % 8 * span + k * 2;
  } else if (mode == 0) {
    a += mn / 8 * stride + k / 8 * leading + k % 8 * 16 + mn % 8 * 2;
  } else {
    a += mn / (span / 2) * leading + k / 8 * stride + k % 8 * span + mn % (span / 2) * 2;
  }
  return a ^ ((a >> 7 & (span / 16 - 1)) << 4);
}
static void run(Wgmma& w, const Fiber* f, const Loc& loc) {
  const int lane = f->index % 32, warp = f->index / 32 % 4;
  static float half[65536];
  if (half[0x3c00] == 0) for (int i = 0; i < 65536; i++) half[i] = f16(i);
  auto get = [&](uint64_t desc, int mn, int k, bool t) {
    uint16_t x;
    memcpy(&x, at(element(desc, mn, k, t), 2, loc), 2);
    return w.f16 ? half[x] : bf16(x);
  };
  if (!w.registers)
    for (int r = 0; r < 2; r++)
      for (int k = 0; k < 16; k++) w.rows[r][k] = get(w.a, warp * 16 + lane / 4 + 8 * r, k, w.ta);
  for (int i = 0; i < w.n / 8; i++) {
    for (int j = 0; j < 2; j++) {
      float b[16];
      for (int k = 0; k < 16; k++) b[k] = get(w.b, i * 8 + lane % 4 * 2 + j, k, w.tb);
      for (int r = 0; r < 2; r++) {
        float sum = w.accumulate ? w.d[i * 4 + r * 2 + j] : 0;
        for (int k = 0; k < 16; k++) sum += w.rows[r][k] * b[k];
        w.d[i * 4 + r * 2 + j] = sum;
      }
    }
  }
}
static void check_descriptor(uint64_t d, const Loc& loc) {
  if (d >> 49 & 7) die(loc, "descriptor with a base offset");
  static bool said;
  if (d >> 62 && (d >> 3 & 7) && !said) said = true, fprintf(stderr, "EMU note %s:%u: a swizzled descriptor starts at +%d, not at a multiple of 1024 (+ < 128)\n", file(loc), loc.line(), int((d & 0x3fff) << 4) - int(BASE));
}
void wgmma(Wgmma w, const Loc& loc) {
  if (cur->index / 128 * 128 + 128 > int(block_dim.x)) die(loc, "wgmma by less than a warpgroup");
  if (!w.registers) check_descriptor(w.a, loc);
  check_descriptor(w.b, loc);
  if (options.loose && !options.defer) { run(w, cur, loc); stats.wgmma++; return; }
  if (!w.accumulate) for (int i = 0; i < w.n / 2; i++) w.d[i] = NAN;
  cur->open.push_back(w);
}
// The oldest group of all four warps, together.
static void run_group(Group& g, const Loc& loc) {
  const size_t products = g.fibers[0]->groups.front().size();
  for (Fiber* f : g.fibers) {
    if (f->groups.front().size() != products) die(loc, "warps of a warpgroup commit different numbers of wgmma");
    for (auto& w : f->groups.front()) run(w, f, loc), stats.wgmma++;
    f->groups.pop_front();
  }
  g.done++;
}
void wgmma_commit(const Loc& loc) {
  warp_sync("wgmma.commit", loc);
  Fiber* f = cur;
  f->groups.push_back(std::move(f->open));
  f->open.clear();
  if (options.loose) return;
  Group& g = *f->group;
  if (int(g.commits.size()) <= f->committed) g.commits.push_back(0);
  const int n = ++g.commits[f->committed++];
  if (n == 128 && !options.defer) run_group(g, loc);
}
void wgmma_wait(int pending, const Loc& loc) {
  Fiber* f = cur;
  if (options.loose) {
    while (int(f->groups.size()) > pending) {
      for (auto& w : f->groups.front()) run(w, f, loc), stats.wgmma++;
      f->groups.pop_front();
    }
  } else {
    Group& g = *f->group;
    const int need = f->committed - pending;
    while (g.done < need) {
      if (g.commits[g.done] == 128) { run_group(g, loc); continue; }
      f->wait = Fiber::WGMMA, f->need = g.done, f->what = "wgmma.wait: other warps of the warpgroup have not committed", f->loc = loc;
      suspend();
    }
  }
  warp_sync("wgmma.wait", loc);
}

uint16_t to_f16(float f) {
  if (f != f) return 0x7fff;
  const uint16_t sign = signbit(f) ? 0x8000 : 0;
  f = fabsf(f);
  if (f == 0) return sign;
  if (f >= 65520.0f) return sign | 0x7c00;
  int e;
  frexpf(f, &e);                       // f in [2^(e-1), 2^e)
  const int unit = std::max(e - 11, -24);
  const long m = lrintf(ldexpf(f, -unit));  // to even
  // m <= 2048; as a number with exponent `unit`
  return sign | uint16_t(unit == -24 ? m : ((unit + 25) << 10) + (m - 1024));
}

void launch(uint3 grid, int threads, int cluster_size, const std::function<void()>& call) {
  static bool once;
  if (!once) {
    once = true;
    static uint8_t alt[65536];
    stack_t s{alt, 0, sizeof alt};
    sigaltstack(&s, nullptr);
    struct sigaction a{};
    a.sa_sigaction = on_signal, a.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int n : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigaction(n, &a, nullptr);
  }
  const Loc loc = Loc::current();
  if (grid.x % cluster_size || threads % 32) die(loc, "launch");
  kernel_call = &call;
  grid_dim = grid, block_dim = {unsigned(threads), 1, 1};
  static std::vector<uint8_t*> memory;
  const size_t size = BASE + DYNAMIC + SPARE;
  while (int(memory.size()) < cluster_size) memory.push_back((uint8_t*)aligned_alloc(1024, (size + 1023) / 1024 * 1024));
  rng_state = options.seed * 0x9E3779B97F4A7C15ull + 12345;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x += cluster_size) {
        Cluster c;
        cluster = &c;
        std::deque<Block> blocks(cluster_size);
        std::deque<Warp> warps(cluster_size * threads / 32);
        std::deque<Group> groups(cluster_size * ((threads + 127) / 128));
        std::deque<Fiber> fibers(cluster_size * threads);
        c.live = c.most = cluster_size * threads;
        for (int r = 0; r < cluster_size; r++) {
          Block& b = blocks[r];
          b.idx = {x + r, y, z}, b.rank = r, b.cluster = &c, b.shared = memory[r], b.live = threads;
          b.mbars.assign((BASE + DYNAMIC) / 8, {});
          memset(b.shared, 0xff, size);
          c.blocks.push_back(&b);
          for (int i = 0; i < threads; i++) {
            const int n = r * threads + i;
            Fiber& f = fibers[n];
            f.tid = {unsigned(i), 0, 0}, f.index = i, f.block = &b, f.warp = &warps[n / 32], f.wait = Fiber::READY;
            f.warp->index = i / 32, f.warp->live = 32;
            f.group = &groups[r * ((threads + 127) / 128) + i / 128];
            f.group->fibers[i % 128] = &f;
            start(&f, n);
            c.fibers.push_back(&f);
          }
        }
        for (Warp& w : warps) c.warps.push_back(&w);
        std::vector<int> order(warps.size());
        for (size_t i = 0; i < order.size(); i++) order[i] = i;
        round_number = 0;
        while (c.live > 0) {
          round_number++;
          stats.rounds++;
          run_jobs();
          bool progress = false, skipped = false;
          if (options.seed) {
            if (round_number % 64 == 1) for (Warp& w : warps) { const double p[] = {0, 0, 0.5, 0.97}; w.skip = p[rng() % 4]; }
            for (size_t i = order.size() - 1; i > 0; i--) std::swap(order[i], order[rng() % (i + 1)]);
          }
          for (int w : order) {
            if (warps[w].live == 0) continue;
            if (warps[w].skip > 0 && uniform() < warps[w].skip) { skipped = true; continue; }
            for (int i = w * 32; i < w * 32 + 32; i++) {
              Fiber& f = fibers[i];
              if (!ready(&f)) continue;
              progress = true;
              f.wait = Fiber::READY;
              cur = &f;
              emu_switch(&main_sp, &f.sp);
              cur = nullptr;
            }
          }
          if (progress || skipped) continue;
          if (!c.jobs.empty()) {
            uint64_t due = ~0ull;
            for (Job& j : c.jobs) due = std::min(due, j.due);
            round_number = std::max(round_number, due - 1);
            continue;
          }
          die(loc, "DEADLOCK: nobody can go on");
        }
        if (!c.jobs.empty()) die(loc, "TMA in flight when the blocks ended");
        for (Block& b : blocks)
          for (size_t i = 0; i < b.mbars.size(); i++)
            if (b.mbars[i].init && b.mbars[i].tx != 0) die(loc, "barrier +%zu ends with tx %ld", i * 8 - BASE, b.mbars[i].tx);
        cluster = nullptr;
      }
}
}  // namespace emu
