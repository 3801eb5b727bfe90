/** Latents that do not fit a device's bindings are decoded one by one, then in tiles; whoever asks for an image need not know. */
import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { Graph } from '../../src/engine/graph';
import { normals, RngStream } from '../../src/engine/rng';
import { numel } from '../../src/engine/shape';
import { decodeLatent, parseAutoencoderKLConfig } from '../../src/model/autoencoder_kl';
import { Parameters, WeightStore } from '../../src/model/parameters';
import { decodeTiled, estimateTiled } from '../../src/model/tiled_decode';
import { directory } from '../../src/node/directory';
import { planDecoding } from '../../src/pipelines/latent_decoder';
import { defaultProfile } from '../../src/pipelines/memory';
import { StableDiffusionPipeline } from '../../src/pipelines/stable_diffusion';
import { testDevice } from '../helpers/device';
import { goldenPath } from '../helpers/golden';

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
