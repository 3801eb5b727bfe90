/** `bruit sample` over the classes of pipelines that model_index.json may name. */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { encodePng } from '../../src/io/png';
import { openSafetensors } from '../../src/io/safetensors';
import { bytesSource } from '../../src/io/source';
import { writeFileAtomic } from '../../src/node/files';
import { goldenPath } from '../helpers/golden';
import { bruit, temporary } from './bruit';

const dir = await temporary();
let next = 0;

/** Images of a run, [N,C,H,W], and its file. */
async function sample(model: string, ...args: string[]): Promise<{ shape: readonly number[]; data: Float32Array }> {
  const file = join(dir, `${next++}.safetensors`);
  const { code, stderr } = await bruit('sample', '--model', goldenPath(model), '--out', file, ...args);
  expect(code, stderr).toBe(0);
  const store = await openSafetensors(bytesSource(await readFile(file), file));
  const data = await store.readF32('images');
  expect(data.every((v) => v >= 0 && v <= 1)).toBe(true);
  return { shape: store.tensors.get('images')!.shape, data };
}

const size = ['--height', '32', '--width', '32'];
const differs = (a: Float32Array, b: Float32Array): number => Math.max(...a.map((v, i) => Math.abs(v - b[i]!)));

test('image i depends on the seed and i alone; previews of every step', { timeout: 120_000 }, async () => {
  const previews = join(dir, 'previews');
  const both = await sample('pipeline_sd_tiny', '--prompt', 'a fox', '--steps', '2', '--scheduler', 'ddim', '--n', '2', '--batch', '2', '--previews', previews, ...size);
  const second = await sample('pipeline_sd_tiny', '--prompt', 'a fox', '--steps', '2', '--scheduler', 'ddim', '--offset', '1', ...size);
  const half = both.data.length / 2;
  expect(differs(both.data.subarray(half), second.data)).toBeLessThan(1e-5);
  expect(differs(both.data.subarray(0, half), second.data)).toBeGreaterThan(0.01);
  expect((await readdir(previews)).sort()).toEqual(['00000-0000.png', '00000-0001.png', '00001-0000.png', '00001-0001.png']);
});

test('decoding shows its progress', { timeout: 120_000 }, async () => {
  const { code, stderr } = await bruit('sample', '--model', goldenPath('pipeline_sd_tiny'), '--prompt', 'a fox', '--steps', '1', '--n', '3', '--batch', '2', '--out', join(dir, 'decoded.png'), '--json', ...size);
  expect(code, stderr).toBe(0);
  const decoded = stderr.split('\n').filter((line) => /"label":"decode"/.test(line)).map((line) => JSON.parse(line) as { done: number; total: number });
  expect(decoded.at(-1)).toMatchObject({ event: 'progress', done: 3, total: 3 });
});

test("with torch's generator, what diffusers draws", { timeout: 120_000 }, async () => {
  // The record's first draw is torch.Generator().manual_seed(11)'s, and LCM takes one more for each step but the last.
  const { data, shape } = await sample('pipeline_xl_tiny', '--prompt', 'a small red fox in the snow', '--steps', '4', '--guidance', '5', '--rng', 'torch-cpu', '--seed', '11', ...size);
  const file = goldenPath('pipeline_xl_tiny', 'runs', 'base.safetensors');
  const record = await (await openSafetensors(bytesSource(await readFile(file), file))).readF32('image');
  expect(shape).toEqual([1, 3, 32, 32]);
  expect(differs(data, record)).toBeLessThan(5e-4);
});

test('image, mask, ControlNets, LoRA and weights of words together', { timeout: 120_000 }, async () => {
  const picture = join(dir, 'picture.png');
  await writeFileAtomic(picture, encodePng({ width: 40, height: 36, channels: 3, data: Uint8Array.from({ length: 40 * 36 * 3 }, (_, i) => (i * 37) % 256) }));
  const net = goldenPath('pipeline_controlnet_tiny', 'controlnet');
  const common = ['--prompt', 'a (red:1.3) fox', '--prompt-weighting', 'a1111', '--clip-skip', '1', '--image', picture, '--mask', picture, '--strength', '0.7', '--steps', '2', '--scheduler', 'ddim', '--lora', `${goldenPath('pipeline_lora_tiny', 'lora_kohya.safetensors')}:0.5`, ...size];
  const one = await sample('pipeline_sd_tiny', ...common, '--controlnet', net, '--control-image', picture);
  // Twice half of it is the same.
  const two = await sample('pipeline_sd_tiny', ...common, '--controlnet', net, '--control-image', picture, '--controlnet', net, '--control-image', picture, '--controlnet-conditioning-scale', '0.5');
  expect(one.shape).toEqual([1, 3, 32, 32]);
  expect(differs(one.data, two.data)).toBeLessThan(1e-3);
});

test('a prompt alone is answered by the bundled scenes, with the guidance that bruit.json names', { timeout: 120_000 }, async () => {
  const draw = async (...args: string[]): Promise<Buffer> => {
    const file = join(dir, `${next++}.safetensors`);
    const { code, stderr } = await bruit('sample', '--prompt', 'two threes side by side', '--steps', '5', '--n', '2', '--out', file, ...args);
    expect(code, stderr).toBe(0);
    return readFile(file);
  };
  const images = async (file: Buffer): Promise<Float32Array> => (await openSafetensors(bytesSource(file))).readF32('images');
  const own = await images(await draw());
  expect(own.length).toBe(2 * 32 * 32);
  expect(await images(await draw('--guidance', '2'))).toEqual(own);
  expect(differs(await images(await draw('--guidance', '7.5')), own)).toBeGreaterThan(0.01);
});

test.each([
  ['pipeline_lcm_tiny', [], undefined],
  ['pipeline_unclip_tiny', ['--prompt', 'a fox', '--prior-num-inference-steps', '2', '--decoder-num-inference-steps', '2', '--super-res-num-inference-steps', '2'], [1, 3, 32, 32]],
  ['pipeline_if_tiny/stage1', ['--prompt', 'a fox', '--steps', '2', '--super-resolution', goldenPath('pipeline_if_tiny', 'stage2'), '--super-res-num-inference-steps', '2'], [1, 3, 32, 32]],
] as const)('%s', { timeout: 120_000 }, async (model, args, shape) => {
  // Its record shares the text encoder and the autoencoder of another: by itself the folder is incomplete, which is said.
  if (!shape) {
    const { code, stderr } = await bruit('sample', '--model', goldenPath(model), '--prompt', 'a', '--out', join(dir, 'incomplete.png'));
    expect([code, stderr]).toEqual([2, expect.stringMatching(/vae\/config\.json|text_encoder\/config\.json/)]);
    return;
  }
  expect((await sample(model, ...args)).shape).toEqual(shape);
});

test('SDXL in two parts, with a refiner or by latents in a file, is SDXL in one', { timeout: 240_000 }, async () => {
  const common = ['--prompt', 'a fox', '--steps', '3', '--scheduler', 'ddim', '--height', '16', '--width', '16'];
  const whole = await sample('pipeline_xl_tiny', ...common);
  const refined = await sample('pipeline_xl_tiny', ...common, '--refiner', goldenPath('pipeline_xl_tiny'), '--denoising-end', '0.5');
  expect(differs(whole.data, refined.data)).toBeLessThan(1e-4);
  const latents = join(dir, 'latents.safetensors');
  const base = ['sample', '--model', goldenPath('pipeline_xl_tiny'), ...common];
  expect(await bruit(...base, '--denoising-end', '0.5', '--output-type', 'latent', '--out', latents)).toMatchObject({ code: 0 });
  const second = await sample('pipeline_xl_tiny', '--prompt', 'a fox', '--steps', '3', '--scheduler', 'ddim', '--image', latents, '--denoising-start', '0.5');
  expect(differs(refined.data, second.data)).toBeLessThan(1e-4);
  expect(await bruit(...base, '--denoising-end', '1.5', '--out', join(dir, 'never.png'))).toMatchObject({ code: 2, stderr: expect.stringMatching(/denoising_end 1\.5 must be more than 0 and less than 1/) as string });
  expect(await bruit(...base, '--denoising-start', '0.5', '--out', join(dir, 'never.png'))).toMatchObject({ code: 2, stderr: expect.stringMatching(/--denoising-start needs an --image/) as string });
});
