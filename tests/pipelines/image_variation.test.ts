/** UnCLIPImageVariationPipeline, for which there are no recorded runs: a folder made of the recorded UnCLIP pipeline and a CLIP image encoder. */
import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { overlayFolder, type ModelFolder } from '../../src/io/folder';
import { openSafetensors, writeSafetensors } from '../../src/io/safetensors';
import { bytesSource } from '../../src/io/source';
import { clipVision, parseCLIPVisionConfig } from '../../src/model/clip';
import { directory } from '../../src/node/directory';
import { Component } from '../../src/pipelines/component';
import { UnCLIPImageVariationPipeline } from '../../src/pipelines/unclip';
import { testDevice } from '../helpers/device';
import { goldenPath } from '../helpers/golden';

const engine = await Engine.create({ device: await testDevice() });
const noise = (n: number, seed: number): Float32Array => Float32Array.from({ length: n }, (_, i) => (Math.sin(seed + i * 12.9898) * 43758.5453) % 1).map(Math.abs);

/** The golden encoder with a projection to the width that text_proj takes. */
async function folderWithEncoder(): Promise<ModelFolder> {
  const base = directory(goldenPath('pipeline_unclip_tiny'));
  const width = (JSON.parse(await base.text('text_proj/config.json')) as { clip_embeddings_dim: number }).clip_embeddings_dim;
  const encoder = directory(goldenPath('clip_vision_with_projection'));
  const config = { ...(JSON.parse(await encoder.text('config.json')) as { hidden_size: number }), projection_dim: width };
  const store = await openSafetensors(bytesSource(readFileSync(goldenPath('clip_vision_with_projection', 'model.safetensors')), 'model.safetensors'));
  const tensors = await Promise.all([...store.tensors].map(async ([name, { shape }]) => ({ name, dtype: 'F32' as const, shape, data: await store.readF32(name) })));
  const weights = writeSafetensors(tensors.map((t) => (t.name === 'visual_projection.weight' ? { ...t, shape: [width, config.hidden_size], data: noise(width * config.hidden_size, 1) } : t)));
  const files = new Map<string, string>([
    ['model_index.json', JSON.stringify({ _class_name: 'UnCLIPImageVariationPipeline' })],
    ['image_encoder/config.json', JSON.stringify(config)],
  ]);
  const top: ModelFolder = {
    name: 'variations',
    has: async (path) => files.has(path) || path === 'image_encoder/model.safetensors',
    text: async (path) => files.get(path)!,
    source: async (path) => bytesSource(weights, path),
  };
  return overlayFolder(top, base);
}

describe('image variations', async () => {
  const folder = await folderWithEncoder();
  const pipeline = await UnCLIPImageVariationPipeline.fromFolder(engine, folder);
  const steps = { decoder_num_inference_steps: 2, super_res_num_inference_steps: 2, seed: 3 };

  test("an image of the encoder's size is only normalised", async () => {
    const image = { shape: [2, 3, 32, 32], data: noise(2 * 3 * 32 * 32, 7) };
    const encoder = await Component.open(engine, folder, {
      name: 'image_encoder',
      weights: 'model',
      parse: parseCLIPVisionConfig,
      declare: (ctx, config) => void clipVision(ctx, config, ctx.graph.input('pixels', [1, 3, 32, 32]), { projection: true }),
    });
    // OpenAI's statistics, by which CLIP was trained.
    const [mean, std] = [[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]];
    const pixels = image.data.map((v, i) => (v - mean[Math.floor(i / 1024) % 3]!) / std[Math.floor(i / 1024) % 3]!);
    const { expected } = await encoder.run((ctx, inputs) => ({ expected: clipVision(ctx, encoder.config, inputs.add('pixels', image.shape, pixels), { projection: true }).imageEmbeds! }));
    const actual = await pipeline.encodeImage(image);
    const largest = expected.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    expect(largest).toBeGreaterThan(0.1);
    expect(Math.max(...actual.map((v, i) => Math.abs(v - expected[i]!)))).toBeLessThan(1e-4 * largest);
  });

  test('an image gives what its embedding gives, and another image something else', async () => {
    const image = { shape: [1, 3, 40, 56], data: noise(3 * 40 * 56, 2) };
    const fromImage = await pipeline.generate({ image, ...steps });
    const fromEmbedding = await pipeline.generate({ image_embeddings: await pipeline.encodeImage(image), ...steps });
    expect(fromImage.images).toEqual(fromEmbedding.images);
    expect(fromImage.shape[0]).toBe(1);
    expect(fromImage.images.every((v) => v >= 0 && v <= 1)).toBe(true);
    const other = await pipeline.generate({ image: { ...image, data: image.data.map((v) => 1 - v) }, ...steps });
    expect(Math.max(...other.images.map((v, i) => Math.abs(v - fromImage.images[i]!)))).toBeGreaterThan(0.01);
  }, 300_000);

  test('variations of one image differ, and the first is the image alone', async () => {
    const image_embeddings = noise(32, 5);
    const both = await pipeline.generate({ image_embeddings, num_images_per_prompt: 2, ...steps });
    const alone = await pipeline.generate({ image_embeddings, ...steps });
    const half = both.images.length / 2;
    expect(Math.max(...alone.images.map((v, i) => Math.abs(v - both.images[i]!)))).toBeLessThan(1e-4);
    expect(both.images.subarray(0, half)).not.toEqual(both.images.subarray(half));
  }, 300_000);

  test('bad input is named', async () => {
    await expect(pipeline.generate({ ...steps })).rejects.toThrow(/give either image or image_embeddings/);
    await expect(pipeline.generate({ image_embeddings: new Float32Array(33), ...steps })).rejects.toThrow(/no embeddings of 32/);
    await expect(pipeline.encodeImage({ shape: [1, 1, 8, 8], data: new Float32Array(64) })).rejects.toThrow(/must be \[N, 3, h, w\]/);
  });
});
