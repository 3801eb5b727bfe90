/**
 * Memory of the published pipelines, planned from their configs alone. tests/configs has those of the published folders, as far as they bear on shapes; Karlo's
 * are the ones in diffusers' conversion script. Published sizes: 4.3 B parameters for IF-I-XL, 1 B, 900 M and 700 M for Karlo's prior, decoder and super-resolution.
 */
import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import type { ModelFolder } from '../../src/io/folder';
import { checkMemory, defaultProfile, estimatePipeline } from '../../src/pipelines/memory';

const read = (name: string): unknown => JSON.parse(readFileSync(new URL(`../configs/${name}.json`, import.meta.url), 'utf8'));
const pipelines = read('pipelines') as Record<string, Record<string, unknown>>;

function folderOf(name: string): ModelFolder {
  const unets: Record<string, string> = { sd15: 'sd15_unet', sd21: 'sd21_unet', sdxl: 'sdxl_unet' };
  const files = new Map(Object.entries({ ...(unets[name] && { 'unet/config.json': read(unets[name]) }), ...pipelines[name] }));
  const unused = (): never => {
    throw new Error('no weights may be asked for');
  };
  return { name, has: async (path) => files.has(path), text: async (path) => JSON.stringify(files.get(path) ?? unused()), source: async () => unused() };
}

const gib = (bytes: number): number => bytes / 2 ** 30;

/** Parameters in millions as PyTorch counts those of the same configs, and who decides the peak. */
test.each([
  ['sd15', { text_encoder: 123.06048, unet: 859.520964, vae: 83.653863 }, 'unet'],
  ['sd21', { text_encoder: 340.38784, unet: 865.910724, vae: 83.653863 }, 'unet'],
  ['sdxl', { text_encoder: 123.06048, text_encoder_2: 694.65984, unet: 2567.463684, vae: 83.653863 }, 'unet'],
  ['if_i_xl', { text_encoder: 4762.310656, unet: 4304.69511 }, 'text_encoder'],
  ['karlo', { text_encoder: 123.650304, prior: 1022.03008, decoder: 885.439686, super_res_first: 691.579523, super_res_last: 691.579523 }, 'prior'],
] as const)('%s', async (name, parameters, peak) => {
  const memory = await estimatePipeline(folderOf(name));
  console.log(name, memory.components.map((c) => `${c.name} ${(c.parameters / 1e6).toFixed(1)} M, ${gib(c.weightBytes).toFixed(2)} + ${gib(c.activationBytes).toFixed(2)} GiB`).join('; '), `peak ${gib(memory.peakBytes).toFixed(2)} GiB (${memory.peakOf.join()})`);
  for (const c of memory.components) if (c.name in parameters) expect(c.parameters / 1e6, c.name).toBeCloseTo(parameters[c.name as keyof typeof parameters], 6);
  expect(memory.peakOf).toEqual([peak]);
  expect(memory.peakBytes).toBeLessThan(memory.keptBytes);
});

test('size and batch count, and what an adapter cannot hold is refused by name', async () => {
  const folder = folderOf('sd15');
  const small = await estimatePipeline(folder, { height: 256, width: 256 });
  const large = await estimatePipeline(folder, { height: 512, width: 512, batch: 4 });
  const unet = (m: typeof small) => m.components.find((c) => c.name === 'unet')!;
  expect(unet(large).activationBytes).toBeGreaterThan(10 * unet(small).activationBytes);
  expect(unet(large).weightBytes).toBe(unet(small).weightBytes);
  expect(() => checkMemory(small, defaultProfile)).not.toThrow();
  expect(() => checkMemory(large, defaultProfile)).toThrow(/needs a tensor of .* binds at most 0\.13 GiB/);
  expect(() => checkMemory(small, defaultProfile, 2 ** 30)).toThrow(/unet needs .* more than the 1\.00 GiB/);
  await expect(estimatePipeline(folder, { height: 500, width: 512 })).rejects.toThrow(/multiples of 8/);
});
