/**
 * Half precision where it overflows (the "black image"): what a plain f16 path makes of large scores and of an autoencoder's activations, shown to be
 * NaN or infinite on this adapter, and what the engine makes of them. On every adapter with shader-f16.
 */
import type { Engine } from '../../src/engine/device';
import { Graph, type HostData, type Tensor } from '../../src/engine/graph';
import { NanProbe } from '../../src/engine/nan_probe';
import { attention } from '../../src/engine/ops/attention';
import { matmul } from '../../src/engine/ops/matmul';
import { scale } from '../../src/engine/ops/pointwise';
import { compile, type CompileOptions } from '../../src/engine/program';
import { numel } from '../../src/engine/shape';
import { decodeLatent, parseAutoencoderKLConfig, type AutoencoderKLConfig } from '../../src/model/autoencoder_kl';
import { wideAttention } from '../../src/model/blocks';
import { Parameters, WeightStore } from '../../src/model/parameters';
import { decodeTiled } from '../../src/model/tiled_decode';
import { f16ToF32, f32ToF16 } from '../../src/io/half';
import { assertClose, normal, random } from './op_suite';

const config = (force_upcast: boolean): AutoencoderKLConfig =>
  parseAutoencoderKLConfig({ _class_name: 'AutoencoderKL', down_block_types: ['DownEncoderBlock2D'], up_block_types: ['UpDecoderBlock2D'], block_out_channels: [8], norm_num_groups: 4, force_upcast });

const shape = [1, 4, 6, 6];
const draw = (n: number, seed: number, std = 1): Float32Array => {
  const rand = random(seed);
  return Float32Array.from({ length: n }, () => std * normal(rand));
};
const latent = { shape, data: draw(numel(shape), 5) };

/** Random weights of the decoder whose first convolution, and so the residual stream behind it, is `gain` times as large: norms take that out again. */
async function decoder(engine: Engine, gain: number): Promise<WeightStore> {
  const parameters = new Parameters(new Graph());
  decodeLatent({ graph: parameters.graph, parameters }, config(true), parameters.graph.input('latent', shape));
  const store = new WeightStore(engine, parameters.specs.values());
  store.initialise(3);
  const name = 'decoder.conv_in.weight';
  store.write(name, (await store.read(name)).map((v) => v * gain));
  return store;
}

async function decode(engine: Engine, store: WeightStore, force_upcast: boolean, computeType: 'f32' | 'f16', probe?: CompileOptions['probe']): Promise<{ image: Float32Array; first: string | undefined }> {
  const parameters = new Parameters(new Graph());
  const { graph } = parameters;
  const input = graph.input('latent', shape);
  const output = decodeLatent({ graph, parameters, computeType }, config(force_upcast), input);
  const program = await compile(engine, graph, { outputs: [output], bindings: store.bindings(parameters), probe });
  program.write(input, latent.data);
  program.run();
  const image = await program.read(output);
  const found = probe instanceof NanProbe ? await probe.firstNonFinite(program) : undefined;
  program.destroy();
  return { image, first: found && `${found.op} ${found.path}` };
}

async function evaluate(engine: Engine, graph: Graph, values: readonly (readonly [Tensor, HostData | Uint16Array])[], output: Tensor): Promise<Float32Array> {
  const program = await compile(engine, graph, { outputs: [output] });
  for (const [t, data] of values) program.write(t, data);
  program.run();
  const result = await program.readRaw(output);
  program.destroy();
  return output.dtype === 'f16' ? f16ToF32(new Uint16Array(result)) : new Float32Array(result);
}

const finite = (values: Float32Array): boolean => values.every(Number.isFinite);

function expectThat(condition: boolean, what: string): void {
  if (!condition) throw new Error(what);
}

/** softmax(q·kᵀ/√D)·v of one head, in float64. */
function reference(q: Float32Array, k: Float32Array, v: Float32Array, dim: number): Float64Array {
  const rows = q.length / dim;
  const out = new Float64Array(q.length);
  for (let t = 0; t < rows; t++) {
    const scores = Array.from({ length: rows }, (_, j) => q.subarray(t * dim, (t + 1) * dim).reduce((sum, x, d) => sum + x * k[j * dim + d]!, 0) / Math.sqrt(dim));
    const top = Math.max(...scores);
    const weights = scores.map((s) => Math.exp(s - top));
    const total = weights.reduce((a, b) => a + b);
    for (let d = 0; d < dim; d++) out[t * dim + d] = weights.reduce((sum, w, j) => sum + w * v[j * dim + d]!, 0) / total;
  }
  return out;
}

/** Attention whose scores lie beyond 65504, before and after the scale. */
async function scores(engine: Engine, dim: number, apply: (q: Tensor, k: Tensor, v: Tensor) => Tensor): Promise<void> {
  const tokens = 12;
  const n = tokens * dim;
  const bits = [draw(n, 1, 20), draw(n, 2, 20), draw(n, 3)].map((x, i) => f32ToF16(i < 2 ? x.map((y) => y + 200 * Math.sign(y)) : x));
  const [q, k, v] = bits.map(f16ToF32) as [Float32Array, Float32Array, Float32Array];
  const build = () => {
    const graph = new Graph();
    const leaves = ['q', 'k', 'v'].map((name) => graph.input(name, [1, tokens, dim], 'f16')) as [Tensor, Tensor, Tensor];
    return { graph, leaves, values: leaves.map((t, i) => [t, bits[i]!] as const) };
  };
  const plain = build();
  const products = await evaluate(engine, plain.graph, plain.values, matmul(plain.leaves[0], plain.leaves[1], { transposeB: true }));
  expectThat(!finite(products), `scores in f16 were to overflow here: the largest is ${Math.max(...products)}`);
  const scaled = build();
  const after = await evaluate(engine, scaled.graph, scaled.values, matmul(scale(scaled.leaves[0], 1 / Math.sqrt(dim)), scaled.leaves[1], { transposeB: true }));
  expectThat(!finite(after), `scaled scores in f16 were to overflow here: the largest is ${Math.max(...after)}`);
  const own = build();
  const actual = await evaluate(engine, own.graph, own.values, apply(...own.leaves));
  assertClose(`attention over heads of ${dim} channels`, actual, reference(q, k, v, dim), 1e-3);
}

export interface HalfPrecisionCheck {
  readonly name: string;
  readonly run: (engine: Engine) => Promise<void>;
}

/** For adapters with shader-f16 alone. */
export function halfPrecisionChecks(): HalfPrecisionCheck[] {
  return [
    { name: 'half precision · attention scores beyond f16', run: (engine) => scores(engine, 64, (q, k, v) => attention(q, k, v, { heads: 1 })) },
    { name: 'half precision · attention scores beyond f16, wide head of an autoencoder', run: (engine) => scores(engine, 272, (q, k, v) => wideAttention(q, k, v, 1)) },
    {
      name: 'half precision · autoencoder activations beyond f16: black in plain f16, whole with force_upcast or after a second try',
      run: async (engine) => {
        const store = await decoder(engine, 2e5); // weights fit f16, sums do not
        try {
          const { image } = await decode(engine, store, true, 'f32');
          expectThat(finite(image) && new Set(image).size > 50, 'the image in f32 is none');
          const plain = await decode(engine, store, false, 'f16', new NanProbe());
          expectThat(!finite(plain.image), 'the plain f16 path was to overflow here');
          expectThat(plain.first === 'conv2d decoder.conv_in', `the first NaN or infinity is in decoder.conv_in, and the probe says ${plain.first}`);
          const upcast = await decode(engine, store, true, 'f16');
          expectThat(upcast.image.every((v, i) => v === image[i]), 'force_upcast: not the bits of f32');
          const again = await decodeTiled(engine, config(false), store, latent, { computeType: 'f16' });
          expectThat(again.computeType === 'f32', 'the image that overflowed was not decoded again');
          assertClose('decoded again', again.data, image, 1e-5);
          const forced = await decodeTiled(engine, config(true), store, latent, { computeType: 'f16' });
          expectThat(forced.computeType === 'f32', 'decodeTiled does not heed force_upcast');
        } finally {
          store.destroy();
        }
      },
    },
    {
      name: 'half precision · an autoencoder that fits f16 is computed in it',
      run: async (engine) => {
        const store = await decoder(engine, 1);
        try {
          const { image } = await decode(engine, store, false, 'f32');
          const half = await decodeTiled(engine, config(false), store, latent, { computeType: 'f16' });
          expectThat(half.computeType === 'f16', 'decoded in f32');
          assertClose('f16 against f32', half.data, image, 2e-2);
          expectThat(half.data.some((v, i) => v !== image[i]), 'f16 that rounds nothing is f32');
        } finally {
          store.destroy();
        }
      },
    },
  ];
}
