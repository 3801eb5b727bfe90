/** Latents that do not fit a device's bindings are decoded one by one, then in tiles; whoever asks for an image need not know. */
import { readFileSync } from 'node:fs';
import { describe, expect, test, vi } from 'vitest';
import { Engine } from '../../src/engine/device';
import { estimate } from '../../src/engine/estimate';
import { Graph } from '../../src/engine/graph';
import { normals, RngStream } from '../../src/engine/rng';
import { numel } from '../../src/engine/shape';
import { decodeLatent, latentFactor, parseAutoencoderKLConfig } from '../../src/model/autoencoder_kl';
import { Parameters, WeightStore } from '../../src/model/parameters';
import { decodeTiled, estimateTiled } from '../../src/model/tiled_decode';
import { directory } from '../../src/node/directory';
import { planDecoding } from '../../src/pipelines/latent_decoder';
import { defaultProfile } from '../../src/pipelines/memory';
import { StableDiffusionPipeline } from '../../src/pipelines/stable_diffusion';
import { testDevice } from '../helpers/device';
import { goldenPath } from '../helpers/golden';

// Counted, and what it is.
vi.mock('../../src/engine/estimate', async (original) => {
  const module = await original<{ estimate: typeof estimate }>();
  return { ...module, estimate: vi.fn(module.estimate) };
});

const engine = await Engine.create({ device: await testDevice() });

/** The same engine where a binding holds `bytes`. */
const limited = (bytes: number): Engine => Object.create(engine, { profile: { value: { ...engine.profile, limits: { ...engine.profile.limits, maxStorageBufferBindingSize: bytes } } } }) as Engine;

test("Stable Diffusion's autoencoder, within WebGPU's guaranteed limits and without", () => {
  const pipelines = JSON.parse(readFileSync(new URL('../configs/pipelines.json', import.meta.url), 'utf8')) as Record<string, Record<string, unknown>>;
  const config = parseAutoencoderKLConfig(pipelines.sd15!['vae/config.json']);
  const limit = defaultProfile.limits.maxStorageBufferBindingSize;
  const large = { ...defaultProfile, limits: { ...defaultProfile.limits, maxStorageBufferBindingSize: 2 ** 31, maxBufferSize: 2 ** 31 } };
  const plan = (side: number, n: number, options: object) => planDecoding(config, [n, 4, side, side], { profile: defaultProfile, ...options });
  expect(plan(32, 1, {})).toMatchObject({ images: 1, largestBytes: 2 ** 26 });
  expect(plan(32, 4, {})).toMatchObject({ images: 1, largestBytes: 2 ** 26 });
  // A value of the whole image, [512,512,256] in f32, takes 256 MiB.
  for (const side of [64, 96, 128]) expect(plan(side, 2, {})).toMatchObject({ images: 1, tile: 32 });
  expect(plan(128, 1, {}).largestBytes).toBeLessThanOrEqual(limit);
  expect(plan(128, 1, {}).activationBytes).toBeLessThan(2 ** 30);
  expect(plan(64, 2, { profile: large }).tile).toBeUndefined();
  expect(plan(64, 2, { profile: large }).images).toBe(2);
  const asked = plan(128, 1, { profile: large, tiling: true });
  expect(asked.tile).toBe(64);
  expect(asked.activationBytes).toBeLessThan(plan(128, 1, { profile: large }).activationBytes / 2);
});

test('tiles take the memory that is estimated', async () => {
  const config = parseAutoencoderKLConfig({ block_out_channels: [8, 8], down_block_types: ['DownEncoderBlock2D', 'DownEncoderBlock2D'], up_block_types: ['UpDecoderBlock2D', 'UpDecoderBlock2D'], norm_num_groups: 2, layers_per_block: 1 });
  const parameters = new Parameters(new Graph());
  decodeLatent({ graph: parameters.graph, parameters }, config, parameters.graph.input('latent', [1, 4, 4, 4]));
  const weights = new WeightStore(engine, parameters.specs.values());
  weights.initialise(1);
  const shape = [1, 4, 16, 12];
  const options = { tile: 8, overlap: 2 };
  const { plannedBytes } = await decodeTiled(engine, config, weights, { shape, data: new Float32Array(numel(shape)).fill(0.5) }, options);
  const bytes = 16 * 12 * 8 * 4 + plannedBytes; // the features that all tiles read
  const estimated = estimateTiled(config, shape, engine.profile, options).plannedBytes;
  expect(estimated).toBeGreaterThanOrEqual(bytes);
  expect(estimated).toBeLessThan(1.05 * bytes);
  weights.destroy();
});

test("a pipeline's decoder on a device with small bindings gives the same images", { timeout: 120_000 }, async () => {
  const shape = [2, 4, 40, 40];
  const latents = normals(3, { index: 0, step: 0, stream: RngStream.noise }, numel(shape));
  const open = async (on: Engine): Promise<StableDiffusionPipeline> => StableDiffusionPipeline.fromFolder(on, directory(goldenPath('pipeline_sd_tiny')));
  const decode = async (on: Engine): Promise<Float32Array> => (await open(on)).latentDecoder.decode(latents, shape);
  const { config } = (await open(engine)).vae;
  const whole = await decode(engine);
  const single = planDecoding(config, [1, ...shape.slice(1)], { profile: engine.profile }).largestBytes;
  expect(planDecoding(config, shape, { profile: limited(single).profile })).toMatchObject({ images: 1 });
  const worst = (image: Float32Array): number => image.reduce((m, v, i) => Math.max(m, Math.abs(v - whole[i]!)), 0) / whole.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
  expect(worst(await decode(limited(single)))).toBeLessThan(1e-5);
  expect(planDecoding(config, shape, { profile: limited(single - 1).profile }).tile).toBe(32);
  const tiled = worst(await decode(limited(single - 1)));
  expect(tiled).toBeGreaterThan(0);
  expect(tiled).toBeLessThan(0.05);
});

describe('a decoder in tiles', () => {
  const shape = [2, 4, 40, 40];
  const latents = normals(3, { index: 0, step: 0, stream: RngStream.noise }, numel(shape));
  const tiled = async (): Promise<StableDiffusionPipeline> => {
    const folder = directory(goldenPath('pipeline_sd_tiny'));
    const { config } = (await StableDiffusionPipeline.fromFolder(engine, folder)).vae;
    return StableDiffusionPipeline.fromFolder(limited(planDecoding(config, [1, ...shape.slice(1)], { profile: engine.profile }).largestBytes - 1), folder);
  };

  test('tells how far it is, tile by tile, over all images', { timeout: 120_000 }, async () => {
    const told: (readonly [number, number])[] = [];
    await (await tiled()).latentDecoder.decode(latents, shape, { onDecode: (done, total) => told.push([done, total]) });
    // Two images of 2x2 tiles in two passes.
    expect(told).toEqual(Array.from({ length: 16 }, (_, i) => [i + 1, 16]));
  });

  test('tells how far it is, image by image', { timeout: 120_000 }, async () => {
    const told: (readonly [number, number])[] = [];
    const { latentDecoder, vae } = await StableDiffusionPipeline.fromFolder(engine, directory(goldenPath('pipeline_sd_tiny')));
    const { images } = planDecoding(vae.config, shape, { profile: engine.profile });
    await latentDecoder.decode(latents, shape, { onDecode: (done, total) => told.push([done, total]) });
    expect(told).toEqual(Array.from({ length: 2 / images }, (_, i) => [(i + 1) * images, 2]));
  });

  test.each([0, 1, 5, 9])('is aborted after %i tiles, and leaves nothing behind', { timeout: 120_000 }, async (after) => {
    const pipeline = await tiled();
    const before = engine.liveBytes;
    const abort = new AbortController();
    if (after === 0) abort.abort(new Error('enough'));
    const told: number[] = [];
    const decoding = pipeline.latentDecoder.decode(latents, shape, {
      signal: abort.signal,
      onDecode(done) {
        told.push(done);
        if (done === after) abort.abort(new Error('enough'));
      },
    });
    await expect(decoding).rejects.toMatchObject({ code: 'aborted', cause: new Error('enough') });
    expect(told.length).toBe(after);
    expect(engine.liveBytes).toBe(before);
  });

  test('a call of a pipeline hears its signal while it decodes, and tells', { timeout: 120_000 }, async () => {
    // The U-Net has all of the device, the autoencoder too little.
    const pipeline = await StableDiffusionPipeline.fromFolder(engine, directory(goldenPath('pipeline_sd_tiny')));
    Object.defineProperty(pipeline.vae, 'engine', { value: (await tiled()).engine });
    const factor = latentFactor(pipeline.vae.config);
    const abort = new AbortController();
    const told: number[] = [];
    const run = pipeline.generate({ prompt: 'x', num_inference_steps: 1, seed: 1, height: 40 * factor, width: 40 * factor, signal: abort.signal, onDecode: (done) => (told.push(done), done === 3 && abort.abort()) });
    await expect(run).rejects.toMatchObject({ code: 'aborted', message: expect.stringMatching(/decoding was aborted after 3 of 4 tiles of pass 1 of 2/) as string });
    expect(told).toEqual([1, 2, 3]);
  });

  test('is planned once for each shape', { timeout: 120_000 }, async () => {
    const pipeline = await tiled();
    await pipeline.latentDecoder.decode(latents, shape);
    const first = vi.mocked(estimate).mock.calls.length;
    await pipeline.latentDecoder.decode(latents, shape);
    expect(vi.mocked(estimate).mock.calls.length).toBe(first);
    await pipeline.latentDecoder.decode(latents.subarray(0, numel([1, 4, 8, 8])), [1, 4, 8, 8]);
    expect(vi.mocked(estimate).mock.calls.length).toBeGreaterThan(first);
  });
});
