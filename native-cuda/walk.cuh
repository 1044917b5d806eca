// Which sequences and KV blocks a thread block works on: the plan, as the kernels that decode read it.
#pragma once
#include "params.cuh"

// A walk over the sequences of this block's part. Registers are short in decode.cu, so that what is needed once a
// sequence is read again from (cached) memory, and what follows from the block's number is made where it is used.
struct Walk {
  int seq;    // this sequence
  int block;  // this block of it
  int end;    // past its last block in this part
  int length;

  // Opaque: made where they are used, so that no register is kept.
  static __device__ __forceinline__ int tile() {
    int x;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
    return x;
  }
  static __device__ __forceinline__ int part() {
    int y;
    asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(y));
    return y;
  }
  static __device__ __forceinline__ int head_kv() {
    int z;
    asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(z));
    return z;
  }
  static __device__ __forceinline__ const int* row(const Plan& plan) { return plan.parts + part() * PART_STRIDE; }
  static __device__ __forceinline__ int read(const int* p) {
    int x;
    asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(x) : "l"(p));
    return x;
  }

  static __device__ __forceinline__ int4 read4(const int* p) {
    int4 x;
    asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p));
    return x;
  }

  Walk() = default;
  __device__ __forceinline__ Walk(const Plan& plan) : Walk(read4(row(plan)), read(row(plan) + 4)) {}
  // From a part's row: its first four words, and the length of its first sequence.
  __device__ __forceinline__ Walk(int4 part, int first_length) { enter(part.x, part.y, first_length, part.z, part.w); }
  __device__ __forceinline__ void enter(int sequence, int first_block, int sequence_length, int last_sequence, int last_end) {
    seq = sequence;
    block = first_block;
    length = sequence_length;
    end = (length + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    if (seq == last_sequence) end = min(end, last_end);
  }
  // Index of the partial result that this part leaves of the sequence; -1 when it has the whole of it.
  __device__ __forceinline__ int partial(const Plan& plan) const {
    const int4 first = read4(row(plan)), more = read4(row(plan) + 4);
    return seq == first.x ? more.z : seq == first.z ? more.w : -1;
  }
  // To the next sequence; false past the last.
  __device__ __forceinline__ bool next(const Plan& plan) {
    const int4 part = read4(row(plan));
    if (seq == part.z) return false;
    enter(seq + 1, 0, read(plan.sequences + (seq + 1) * 4), part.z, part.w);
    return true;
  }
};
