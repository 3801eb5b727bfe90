import shader from '../../../shaders/timestep_embedding.wgsl';
import { check } from '../errors';
import type { Tensor } from '../graph';
import { defineOp, opTests } from '../op';
import { vectorType } from '../pointwise_codegen';
import { numel, showShape } from '../shape';

interface SinusoidAttrs {
  /** Width of the result. */
  readonly dim: number;
  /** Cosines before sines. */
  readonly flipSinToCos: boolean;
  /** Embed ln(t). */
  readonly log: boolean;
  /** Factor on the argument. */
  readonly argumentScale: number;
  /** Factor on the result. */
  readonly scale: number;
}

const timestepEmbeddingOp = defineOp<SinusoidAttrs>({
  name: 'timestep_embedding',
  doc: 'Sines and cosines of t·frequency (or ln t·frequency) for t [N] and frequencies [D/2]: [N,D] f32, a zero column behind where D is odd (Vaswani et al. 2017; Tancik et al. 2020).',
  infer([t, frequency], { dim }) {
    check(t!.shape.length === 1 && t!.dtype !== 'f16', 'shape', () => `timesteps must be [N] of f32 or integers, not ${t!.dtype} ${showShape(t!.shape)}`);
    check(Number.isInteger(dim) && dim >= 2, 'shape', () => `width ${dim} must be at least 2`);
    check(frequency!.dtype === 'f32' && numel(frequency!.shape) === Math.floor(dim / 2), 'shape', () => `frequencies must be f32 [${Math.floor(dim / 2)}], not ${frequency!.dtype} ${showShape(frequency!.shape)}`);
    return [{ shape: [t!.shape[0]!, dim], dtype: 'f32' }];
  },
  lower({ inputs: [t, frequency], outputs: [y], attrs: { dim, flipSinToCos, log, argumentScale, scale }, dispatch }) {
    const rows = t!.shape[0]!;
    dispatch({
      shader: { file: 'timestep_embedding.wgsl', text: shader },
      entry: 'forward',
      prologue: { T: vectorType(t!.dtype, 1), COSINE_FIRST: flipSinToCos, LOG: log },
      bindings: { t: t!, frequency: frequency!, y: y! },
      params: { rows, width: dim, argument_scale: argumentScale, scale },
      workgroups: Math.ceil((rows * dim) / 64),
    });
  },
  flops: (_, [y]) => 15 * numel(y!.shape),
  grad: { notDifferentiable: 'timesteps are given, and the frequencies of a Fourier projection are fixed' },
});

export interface TimestepEmbeddingOptions {
  /** Width of the embedding. */
  readonly dim: number;
  /** Cosines before sines. */
  readonly flipSinToCos: boolean;
  /** downscale_freq_shift: the exponent is i/(dim/2 − freqShift). */
  readonly freqShift: number;
  readonly scale?: number;
  readonly maxPeriod?: number;
}

/** maxPeriod^(−i/(half − freqShift)), rounded to f32 where PyTorch rounds: one ulp here is 6e-5 in the sine of t = 999. */
export function timestepFrequencies({ dim, freqShift, maxPeriod = 10000 }: Pick<TimestepEmbeddingOptions, 'dim' | 'freqShift' | 'maxPeriod'>): Float32Array {
  const half = Math.floor(dim / 2);
  check(half >= 1 && half !== freqShift, 'config', () => `timestepEmbedding: freqShift ${freqShift} of width ${dim} divides by zero`);
  const f32 = Math.fround;
  return Float32Array.from({ length: half }, (_, i) => Math.exp(f32(f32(f32(-Math.log(maxPeriod)) * i) / f32(half - freqShift))));
}

/** diffusers' get_timestep_embedding: `t` [N] (f32 or integers) to [N,dim] f32. */
export function timestepEmbedding(t: Tensor, options: TimestepEmbeddingOptions): Tensor {
  const { dim, flipSinToCos, scale = 1 } = options;
  const frequencies = timestepFrequencies(options);
  return t.graph.add1(timestepEmbeddingOp, [t, t.graph.constant('frequencies', [frequencies.length], frequencies)], { dim, flipSinToCos, log: false, argumentScale: 1, scale });
}

/** diffusers' GaussianFourierProjection: sines and cosines of 2π·w·t, or of 2π·w·ln t, for fixed random w = `weight` [D/2]. Returns f32 [N,D]. */
export function gaussianFourierProjection(t: Tensor, weight: Tensor, { flipSinToCos, log }: { flipSinToCos: boolean; log: boolean }): Tensor {
  return t.graph.add1(timestepEmbeddingOp, [t, weight], { dim: 2 * numel(weight.shape), flipSinToCos, log, argumentScale: 2 * Math.PI, scale: 1 });
}

const timesteps = { shape: [6], dtype: 'f32', fill: { values: [0, 1, 999, 500.5, 13, 998] } } as const;
const frequencies = (options: { dim: number; freqShift: number }) => {
  const values = Array.from(timestepFrequencies(options));
  return { shape: [values.length], dtype: 'f32', fill: { values } } as const;
};
const plain = { log: false, argumentScale: 1, scale: 1 };

export const tests = opTests<SinusoidAttrs>({
  op: timestepEmbeddingOp,
  // Arguments rounded to f32 as the op defines them; sines and cosines of those in f64.
  reference([t, frequency], { dim, flipSinToCos, log, argumentScale, scale }) {
    const half = Math.floor(dim / 2);
    const y = new Float64Array(t!.shape[0]! * dim);
    t!.data.forEach((number, n) => {
      for (let k = 0; k < half; k++) {
        const argument = Math.fround(Math.fround((log ? Math.fround(Math.log(number)) : number) * frequency!.data[k]!) * Math.fround(argumentScale));
        y[n * dim + (flipSinToCos ? half : 0) + k] = scale * Math.sin(argument);
        y[n * dim + (flipSinToCos ? 0 : half) + k] = scale * Math.cos(argument);
      }
    });
    return [y];
  },
  cases: [
    { name: 'Stable Diffusion', inputs: [timesteps, frequencies({ dim: 320, freqShift: 0 })], attrs: { ...plain, dim: 320, flipSinToCos: true }, tolerance: 5e-7 },
    { name: 'DDPM', inputs: [timesteps, frequencies({ dim: 128, freqShift: 1 })], attrs: { ...plain, dim: 128, flipSinToCos: false }, tolerance: 5e-7 },
    { name: 'odd width, scaled', inputs: [timesteps, frequencies({ dim: 33, freqShift: 0 })], attrs: { ...plain, dim: 33, flipSinToCos: false, scale: 2.5 }, tolerance: 5e-7 },
    { name: 'integers', inputs: [{ shape: [3], dtype: 'i32', fill: { values: [0, 17, 999] } }, frequencies({ dim: 8, freqShift: 0 })], attrs: { ...plain, dim: 8, flipSinToCos: true }, tolerance: 5e-7 },
    // One ulp of ln t, times w, times 2π.
    { name: 'Fourier projection of ln sigma', inputs: [{ shape: [7], dtype: 'f32', fill: { values: [0.01, 0.5, 0.9999, 1.3, 50, 1348, 1] } }, { shape: [64], dtype: 'f32', fill: { mean: 0, std: 16 } }], attrs: { dim: 128, flipSinToCos: false, log: true, argumentScale: 2 * Math.PI, scale: 1 }, tolerance: 2e-4 },
    { name: 'Fourier projection', inputs: [{ shape: [3], dtype: 'f32', fill: 'normal' }, { shape: [5], dtype: 'f32' }], attrs: { dim: 10, flipSinToCos: true, log: false, argumentScale: 2 * Math.PI, scale: 1 }, tolerance: 5e-7 },
  ],
});
