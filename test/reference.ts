/**
 * The oracle: paged MLA decode attention in float64, written from the definition and sharing nothing with src/.
 *
 *   out[b,i,h,:] = sum_t p_t V_t,  p = softmax(scale * K q),  lse[b,h,i] = log(sum_t exp(scale * K_t q))
 *
 * over the keys t < visible(i): all of the sequence, or, when causal, keys 0 .. seqlen - s_q + i. V_t is the first
 * d_v numbers of K_t. A row that sees no key: out = 0, lse = +inf. Slots and table entries past a sequence's end are
 * not read.
 */
export interface ReferenceArgs {
  /** [b, s_q, h_q, d_qk], values already rounded to the tensor's type. */
  readonly q: ArrayLike<number>;
  /** [num_blocks, block_size, h_kv, d_qk], likewise. */
  readonly kvCache: ArrayLike<number>;
  /** [b, max_blocks_per_seq] */
  readonly blockTable: ArrayLike<number>;
  /** [b] */
  readonly cacheSeqlens: ArrayLike<number>;
  readonly sQ: number;
  readonly hQ: number;
  readonly hKv: number;
  readonly dQk: number;
  readonly dV: number;
  readonly blockSize: number;
  /** d_qk ** -0.5 when absent. */
  readonly softmaxScale?: number;
  readonly causal?: boolean;
}

export interface ReferenceResult {
  /** [b, s_q, h_q, d_v], not rounded. */
  readonly out: Float64Array;
  /** [b, h_q, s_q] */
  readonly lse: Float64Array;
}

/** All sequences, or only the rows of those named (the others' results stay NaN). */
export function referenceDecode(args: ReferenceArgs, sequences?: readonly number[]): ReferenceResult {
  const { q, cacheSeqlens, sQ, hQ, hKv, dQk, dV, causal = false } = args;
  const scale = args.softmaxScale ?? dQk ** -0.5;
  const b = cacheSeqlens.length;
  const headsPerKv = hQ / hKv;
  const out = new Float64Array(b * sQ * hQ * dV).fill(NaN);
  const lse = new Float64Array(b * hQ * sQ).fill(NaN);
  const query = new Float64Array(dQk);

  for (const s of sequences ?? Array.from({ length: b }, (_, i) => i)) {
    const length = cacheSeqlens[s]!;
    const p = new Float64Array(length);
    for (let hk = 0; hk < hKv; hk++) {
      const keys = gather(args, s, hk);
      for (let i = 0; i < sQ; i++) {
        const visible = causal ? Math.max(0, length - sQ + i + 1) : length;
        for (let h = hk * headsPerKv; h < (hk + 1) * headsPerKv; h++) {
          const row = (s * sQ + i) * hQ + h;
          for (let d = 0; d < dQk; d++) query[d] = q[row * dQk + d]! * scale;
          const into = out.subarray(row * dV, (row + 1) * dV);
          lse[(s * hQ + h) * sQ + i] = attend(query, keys, visible, dQk, p, into);
        }
      }
    }
  }
  return { out, lse };
}

/** [length, d_qk]: the keys of one sequence and KV head, in order. */
function gather(args: ReferenceArgs, s: number, hk: number): Float64Array {
  const { kvCache, blockTable, cacheSeqlens, hKv, dQk, blockSize } = args;
  const length = cacheSeqlens[s]!;
  const maxBlocks = blockTable.length / cacheSeqlens.length;
  const keys = new Float64Array(length * dQk);
  for (let t = 0; t < length; t++) {
    const block = blockTable[s * maxBlocks + Math.floor(t / blockSize)]!;
    const from = ((block * blockSize + (t % blockSize)) * hKv + hk) * dQk;
    for (let d = 0; d < dQk; d++) keys[t * dQk + d] = kvCache[from + d]!;
  }
  return keys;
}

/** One row: fills `out` and returns the log-sum-exp. */
function attend(query: Float64Array, keys: Float64Array, visible: number, dQk: number, p: Float64Array, out: Float64Array): number {
  const dV = out.length;
  out.fill(0);
  if (visible === 0) return Infinity;

  let max = -Infinity;
  for (let t = 0; t < visible; t++) {
    const at = t * dQk;
    // Two sums, so that the additions overlap.
    let even = 0;
    let odd = 0;
    for (let d = 0; d < dQk; d += 2) {
      even += query[d]! * keys[at + d]!;
      odd += query[d + 1]! * keys[at + d + 1]!;
    }
    p[t] = even + odd;
    // NaN stays: Math.max returns it and nothing replaces it afterwards.
    max = Math.max(max, even + odd);
  }
  let sum = 0;
  for (let t = 0; t < visible; t++) sum += p[t] = Math.exp(p[t]! - max);
  for (let t = 0; t < visible; t++) {
    const weight = p[t]! / sum;
    const at = t * dQk;
    for (let d = 0; d < dV; d++) out[d]! += weight * keys[at + d]!;
  }
  return max + Math.log(sum);
}
