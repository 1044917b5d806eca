// Emulated: see ../README.md.
#pragma once
#include "emu.h"

namespace ptx {
inline uint32_t shared_address(const void* p, EMU_LOC) { return emu::address(p, loc); }
inline void barrier_init(uint32_t bar, uint32_t arrivals, EMU_LOC) { emu::mbar_init(bar, arrivals, loc); }
inline void fence_barrier_init() {}
inline void barrier_arrive(uint32_t bar, EMU_LOC) { emu::maybe_yield(); emu::mbar_arrive(emu::cur->block, bar, 1, 0, loc); }
inline void barrier_arrive_remote(uint32_t bar, uint32_t rank, EMU_LOC) { emu::maybe_yield(); emu::mbar_arrive(emu::peer(rank, loc), bar, 1, 0, loc); }
inline void barrier_arrive_expect(uint32_t bar, uint32_t bytes, EMU_LOC) { emu::maybe_yield(); emu::mbar_arrive(emu::cur->block, bar, 1, bytes, loc); }
inline void barrier_wait(uint32_t bar, uint32_t parity, EMU_LOC) { emu::maybe_yield(); emu::mbar_wait(bar, parity, loc); }
template <int Id, int Threads> inline void named_barrier(EMU_LOC) { emu::maybe_yield(); emu::named(Id, Threads, loc); }
template <int Threads> inline void named_barrier_at(int id, EMU_LOC) { emu::maybe_yield(); emu::named(id, Threads, loc); }
template <int Threads> inline bool named_barrier_or(int id, bool x, EMU_LOC) { emu::maybe_yield(); return emu::named(id, Threads, loc, x); }
inline void fence_proxy_async() {}
inline int thread_id() { return emu::cur->tid.x; }
inline uint32_t cluster_rank() { return emu::cur->block->rank; }
inline void cluster_sync_relaxed(EMU_LOC) { emu::cluster_sync(loc); }
template <int Registers> inline void registers_grow(EMU_LOC) { emu::warp_sync("setmaxnreg", loc); }
template <int Registers> inline void registers_shrink(EMU_LOC) { emu::warp_sync("setmaxnreg", loc); }
inline void dependency_wait() {}
inline void dependents_launch() {}
}  // namespace ptx
