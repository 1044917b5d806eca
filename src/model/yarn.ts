/**
 * Rotary angles of a DeepSeek decoder, plain or stretched by YaRN, and what YaRN does to the softmax scale: the numbers of
 * transformers' deepseek_v2 and deepseek_v3 (both the same), computed in f64 where it computes in f32.
 */
import type { DeepSeekConfig, YarnConfig } from './config.ts';

/** A decoder's rotation: pair i of a head turns by position * frequencies[i], and grows by `multiplier`. */
export interface Rope {
  /** [rope / 2] */
  readonly frequencies: Float64Array;
  /** Of cosine and sine. */
  readonly multiplier: number;
  /** Of the attention's scores: in place of (nope + rope) ** -0.5. */
  readonly softmaxScale: number;
}

export function makeRope(config: DeepSeekConfig): Rope {
  const { qkNopeHeadDim: nope, qkRopeHeadDim: rope, ropeTheta, yarn } = config;
  const plain = Float64Array.from({ length: rope / 2 }, (_, i) => ropeTheta ** (-2 * i / rope));
  const scale = (nope + rope) ** -0.5;
  if (yarn === null) return { frequencies: plain, multiplier: 1, softmaxScale: scale };
  const [low, high] = rampRange(yarn, rope, ropeTheta);
  return {
    // Dimensions that turn fast keep their frequency, slow ones are stretched by `factor`, a ramp between.
    frequencies: plain.map((frequency, i) => {
      const stretched = Math.min(1, Math.max(0, (i - low) / (high - low)));
      return (frequency / yarn.factor) * stretched + frequency * (1 - stretched);
    }),
    multiplier: multiplier(yarn),
    softmaxScale: yarn.mscaleAllDim === 0 ? scale : scale * mscale(yarn.factor, yarn.mscaleAllDim) ** 2,
  };
}

/** [T, rope / 2, 2]: cosine and sine for each of T positions. Angles are f64; f32 would be off by 1e-3 at position 10^4. */
export function ropeAngles({ frequencies, multiplier }: Rope, positions: ArrayLike<number>): Float32Array<ArrayBuffer> {
  const pairs = frequencies.length;
  const angles = new Float32Array(positions.length * pairs * 2);
  for (let t = 0; t < positions.length; t++) {
    for (let i = 0; i < pairs; i++) {
      const angle = positions[t]! * frequencies[i]!;
      angles[(t * pairs + i) * 2] = Math.cos(angle) * multiplier;
      angles[(t * pairs + i) * 2 + 1] = Math.sin(angle) * multiplier;
    }
  }
  return angles;
}

/** YaRN's temperature for a stretch by `factor`. */
function mscale(factor: number, weight: number): number {
  return factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1;
}

function multiplier({ attentionFactor, factor, mscale: weight, mscaleAllDim }: YarnConfig): number {
  if (attentionFactor !== null) return attentionFactor;
  return weight !== 0 && mscaleAllDim !== 0 ? mscale(factor, weight) / mscale(factor, mscaleAllDim) : mscale(factor, 1);
}

/** The pairs between which the ramp runs: those that turn `betaFast` and `betaSlow` times over the original context. */
function rampRange({ betaFast, betaSlow, originalMaxPositionEmbeddings, truncate }: YarnConfig, rope: number, theta: number): [number, number] {
  const pairThatTurns = (times: number): number => (rope * Math.log(originalMaxPositionEmbeddings / (times * 2 * Math.PI))) / (2 * Math.log(theta));
  let low = pairThatTurns(betaFast);
  let high = pairThatTurns(betaSlow);
  if (truncate) [low, high] = [Math.floor(low), Math.ceil(high)];
  low = Math.max(low, 0);
  high = Math.min(high, rope - 1);
  return [low, high === low ? high + 0.001 : high];
}
