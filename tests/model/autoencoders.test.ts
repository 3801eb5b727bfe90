import { afterAll, describe, expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { Graph } from '../../src/engine/graph';
import { attention } from '../../src/engine/ops/attention';
import { compile } from '../../src/engine/program';
import { normals } from '../../src/engine/rng';
import { decodeLatent, encodeImage, parseAutoencoderKLConfig, sampleLatent, scaleLatent, unscaleLatent } from '../../src/model/autoencoder_kl';
import { decodeLatentTiny, encodeImageTiny, parseAutoencoderTinyConfig } from '../../src/model/autoencoder_tiny';
import { wideAttention } from '../../src/model/blocks';
import { Parameters, WeightStore } from '../../src/model/parameters';
import { decodeTiled, tileSpans, tileWeight } from '../../src/model/tiled_decode';
import { testDevice } from '../helpers/device';
import { runRandomModel } from '../helpers/model';
import { assertClose } from '../helpers/op_suite';

const engine = await Engine.create({ device: await testDevice() });
afterAll(() => engine.destroy());

const draw = (count: number, index = 0): Float32Array => Float32Array.from(normals(7, { index, step: 0, stream: 0 }, count));

test('attention by wide heads, in slices of queries, agrees with the kernel', async () => {
  const graph = new Graph();
  const [q, k, v] = ['q', 'k', 'v'].map((name, i) => graph.input(name, [2, i === 0 ? 7 : 5, 24])) as [never, never, never];
  const outputs = [attention(q, k, v, { heads: 3 }), wideAttention(q, k, v, 3), wideAttention(q, k, v, 3, 60)] as const;
  const program = await compile(engine, graph, { outputs, poison: true });
  for (const [i, leaf] of [q, k, v].entries()) program.write(leaf, draw(2 * 24 * (i === 0 ? 7 : 5), i));
  program.run();
  const expected = await program.read(outputs[0]);
  for (const [name, out] of [['whole', outputs[1]], ['sliced', outputs[2]]] as const) assertClose(name, await program.read(out), expected, 1e-5);
  program.destroy();
});

describe('AutoencoderKL', () => {
  const small = { block_out_channels: [8, 12], down_block_types: ['DownEncoderBlock2D', 'DownEncoderBlock2D'], up_block_types: ['UpDecoderBlock2D', 'UpDecoderBlock2D'], norm_num_groups: 4, scaling_factor: 0.3, shift_factor: 0.1 };
  const config = parseAutoencoderKLConfig(small);

  test('samples are mean + e^(logvar/2)·noise, scaled and back', async () => {
    const noise = draw(2 * 4 * 12);
    const { values } = await runRandomModel(engine, (ctx) => {
      const distribution = encodeImage(ctx, config, ctx.graph.input('image', [2, 3, 8, 6]));
      const sample = sampleLatent(distribution, ctx.graph.input('noise', [2, 4, 4, 3]));
      const scaled = scaleLatent(config, sample);
      return { ...distribution, sample, scaled, back: unscaleLatent(config, scaled) };
    }, { image: draw(2 * 3 * 48, 1), noise });
    const sample = values.mean.map((m, i) => m + Math.exp(values.logvar[i]! / 2) * noise[i]!);
    assertClose('sample', values.sample, sample, 1e-6);
    assertClose('scaled', values.scaled, sample.map((z) => (z - 0.1) * 0.3), 1e-6);
    assertClose('back', values.back, sample, 1e-6);
  });

  test('bad images, latents and configs are refused by name', async () => {
    const build = (shape: number[]) => runRandomModel(engine, (ctx) => ({ y: encodeImage(ctx, config, ctx.graph.input('image', shape)).mean }), {});
    await expect(build([1, 3, 8, 7])).rejects.toThrow(/image \[1,3,8,7\] must be \[N, 3, H, W\] with H and W multiples of 2/);
    await expect(runRandomModel(engine, (ctx) => ({ y: decodeLatent(ctx, config, ctx.graph.input('z', [1, 3, 4, 4])) }), {})).rejects.toThrow(/latent \[1,3,4,4\] must be \[N, 4, h, w\]/);
    expect(() => parseAutoencoderKLConfig({ ...small, latents_mean: [0, 0, 0, 0] })).toThrow(/"latents_mean" is set, which bruit does not support/);
    expect(() => parseAutoencoderKLConfig({ ...small, up_block_types: ['UpDecoderBlock2D'] })).toThrow(/one entry per resolution/);
  });
});

describe('tiles', () => {
  test.each([[64, 64, 16], [65, 64, 16], [100, 16, 4], [31, 8, 4], [9, 8, 0], [97, 32, 16]])('of an axis of %i, at most %i long and sharing %i: all of it once', (length, tile, overlap) => {
    const spans = tileSpans(length, tile, overlap);
    expect(spans.every(({ start, size }) => start >= 0 && size === Math.min(tile, length) && start + size <= length)).toBe(true);
    expect(spans.flatMap(({ core: [from, to] }) => Array.from({ length: to - from }, (_, i) => from + i))).toEqual(Array.from({ length }, (_, i) => i));
    for (let u = 0.0625; u < length; u += 0.125) {
      const weights = spans.map((span) => tileWeight(span, u, length));
      expect(weights.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 12);
      // No weight where the tile has no pixels.
      spans.forEach(({ start, size }, i) => expect(weights[i]! > 0 && (u < start || u > start + size)).toBe(false));
    }
  });

  const config = parseAutoencoderKLConfig({ block_out_channels: [8, 8], down_block_types: ['DownEncoderBlock2D', 'DownEncoderBlock2D'], up_block_types: ['UpDecoderBlock2D', 'UpDecoderBlock2D'], norm_num_groups: 2 });
  const shape = [1, 4, 60, 8];
  const data = draw(4 * 60 * 8);

  test('give the whole image within a bound, in memory that does not grow with it', async () => {
    const graph = new Graph();
    const parameters = new Parameters(graph);
    const latent = graph.input('latent', shape);
    const output = decodeLatent({ graph, parameters }, config, latent);
    const store = new WeightStore(engine, parameters.specs.values());
    store.initialise(5);
    const program = await compile(engine, graph, { outputs: [output], bindings: store.bindings(parameters) });
    program.write(latent, data);
    program.run();
    const whole = await program.read(output);
    const wholeBytes = program.plan.plannedBytes;
    program.destroy();
    const live = engine.liveBytes;
    const largest = whole.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    const decode = async (options: object) => {
      const { data: image, ...rest } = await decodeTiled(engine, config, store, { shape, data }, options);
      return { ...rest, error: image.reduce((worst, v, i) => Math.max(worst, Math.abs(v - whole[i]!)), 0) / largest };
    };
    const calls: [number, number][] = [];
    const own = await decode({ tile: 40, overlap: 20, passes: 1 });
    const shared = await decode({ tile: 40, overlap: 20, onProgress: (done: number, total: number) => calls.push([done, total]) });
    const exact = await decode({ tile: 40, overlap: 20, passes: 'exact' });
    expect(calls).toEqual([1, 2, 3, 4].map((done) => [done, 4]));
    expect(exact.error).toBeLessThan(1e-5);
    expect(shared.error).toBeLessThan(0.1);
    expect(shared.error).toBeLessThan(own.error);
    // A taller image. Not much taller: what comes before the tiles works on the whole latent, and would outgrow such small tiles.
    const { plannedBytes } = await decodeTiled(engine, config, store, { shape: [1, 4, 80, 8], data: draw(4 * 80 * 8) }, { tile: 40, overlap: 20, passes: 1 });
    expect(plannedBytes).toBe(own.plannedBytes);
    expect(plannedBytes).toBeLessThan(wholeBytes);
    expect(engine.liveBytes).toBe(live);
    const aborted = decodeTiled(engine, config, store, { shape, data }, { tile: 40, overlap: 20, signal: AbortSignal.abort() });
    await expect(aborted).rejects.toThrow(/aborted after 0 of 2 tiles of pass 1 of 2/);
    expect(engine.liveBytes).toBe(live);
    await expect(decodeTiled(engine, config, store, { shape, data }, { tile: 8, overlap: 5 })).rejects.toThrow(/overlap at most half a tile/);
    store.destroy();
  }, 300_000);
});

describe('AutoencoderTiny', () => {
  test('both halves agree with a plain float64 reference', async () => {
    const config = parseAutoencoderTinyConfig({ encoder_block_out_channels: [6, 6], decoder_block_out_channels: [5, 5, 5], num_encoder_blocks: [1, 2], num_decoder_blocks: [2, 1, 1], latent_channels: 3 });
    const [image, latent] = [draw(2 * 3 * 48), draw(2 * 3 * 12, 1).map((v) => 3 * v)];
    const { values, weights } = await runRandomModel(engine, (ctx) => ({
      encoded: encodeImageTiny(ctx, config, ctx.graph.input('image', [2, 3, 8, 6])),
      decoded: decodeLatentTiny(ctx, config, ctx.graph.input('latent', [2, 3, 4, 3])),
    }), { image, latent });
    const encoded = [], decoded = [];
    for (let b = 0; b < 2; b++) {
      encoded.push(...tinyReference(weights, 'encoder', { channels: 3, height: 8, width: 6, data: Array.from(image.subarray(b * 144, (b + 1) * 144), (v) => (v + 1) / 2) }, ['conv', 'block', 'stride', 'block', 'block', 'conv']).data);
      const x = Array.from(latent.subarray(b * 36, (b + 1) * 36), (v) => 3 * Math.tanh(v / 3));
      decoded.push(...tinyReference(weights, 'decoder', { channels: 3, height: 4, width: 3, data: x }, ['conv', 'relu', 'block', 'block', 'up', 'conv', 'block', 'up', 'conv', 'block', 'conv']).data.map((v) => 2 * v - 1));
    }
    assertClose('encoded', values.encoded, encoded, 1e-5);
    assertClose('decoded', values.decoded, decoded, 1e-5);
  });

  test('widths that change are refused', () => {
    expect(() => parseAutoencoderTinyConfig({ encoder_block_out_channels: [64, 64, 64, 32] }, 'vae/config.json')).toThrow(/vae\/config\.json: "encoder_block_out_channels" is \[64, 64, 64, 32\]/);
  });
});

interface Planes {
  channels: number;
  height: number;
  width: number;
  data: number[];
}

/** The layers of one half by their kinds, on one image. */
function tinyReference(weights: ReadonlyMap<string, Float32Array>, half: string, image: Planes, kinds: readonly string[]): Planes {
  const relu = (x: Planes): Planes => ({ ...x, data: x.data.map((v) => Math.max(v, 0)) });
  const conv = (x: Planes, name: string, stride = 1): Planes => {
    const w = weights.get(`${name}.weight`)!;
    const bias = weights.get(`${name}.bias`);
    const channels = w.length / x.channels / 9;
    const [height, width] = [Math.ceil(x.height / stride), Math.ceil(x.width / stride)];
    const data = [];
    for (let k = 0; k < channels; k++) {
      for (let i = 0; i < height; i++) {
        for (let j = 0; j < width; j++) {
          let total = bias?.[k] ?? 0;
          for (let c = 0; c < x.channels; c++) {
            for (let r = -1; r <= 1; r++) {
              for (let s = -1; s <= 1; s++) {
                const [y, z] = [i * stride + r, j * stride + s];
                if (y >= 0 && y < x.height && z >= 0 && z < x.width) total += w[((k * x.channels + c) * 3 + r + 1) * 3 + s + 1]! * x.data[(c * x.height + y) * x.width + z]!;
              }
            }
          }
          data.push(total);
        }
      }
    }
    return { channels, height, width, data };
  };
  const up = ({ channels, height, width, data }: Planes): Planes => ({
    channels,
    height: 2 * height,
    width: 2 * width,
    data: Array.from({ length: 4 * data.length }, (_, i) => data[(Math.floor(i / (4 * height * width)) * height + Math.floor((Math.floor(i / (2 * width)) % (2 * height)) / 2)) * width + Math.floor((i % (2 * width)) / 2)]!),
  });
  return kinds.reduce((x, kind, i) => {
    const name = `${half}.layers.${i}`;
    if (kind === 'relu') return relu(x);
    if (kind === 'up') return up(x);
    if (kind !== 'block') return conv(x, name, kind === 'stride' ? 2 : 1);
    const y = conv(relu(conv(relu(conv(x, `${name}.conv.0`)), `${name}.conv.2`)), `${name}.conv.4`);
    return relu({ ...y, data: y.data.map((v, k) => v + x.data[k]!) });
  }, image);
}
