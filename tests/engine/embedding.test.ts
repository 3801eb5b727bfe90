/** bruit inside somebody else's program: their device, buffers, encoders and textures, and nothing left behind. */
import { beforeAll, describe, expect, test } from 'vitest';
import { bundledModel } from '../../cli/sample';
import { Engine } from '../../src/engine/device';
import { Graph } from '../../src/engine/graph';
import { ImageOutput } from '../../src/engine/image_output';
import { matmul } from '../../src/engine/ops/matmul';
import { silu } from '../../src/engine/ops/pointwise';
import { profile } from '../../src/engine/profiler';
import { compile } from '../../src/engine/program';
import { toByte } from '../../src/io/png';
import { directory } from '../../src/node/directory';
import { DDPMPipeline, type GeneratedImages } from '../../src/pipelines/ddpm';
import { countObjects } from '../helpers/counted_device';
import { freshDevice } from '../helpers/device';

const device = await freshDevice();
const live = countObjects(device);
const engine = await Engine.create({ device });
const none = { buffers: 0, bytes: 0, textures: 0, querySets: 0 };
const options = { labels: [3, 8], steps: 3, scheduler: 'ddpm', seed: 4 } as const;

test("tensors over the caller's buffers, recorded into the caller's encoder among its own commands", async () => {
  const graph = new Graph();
  const x = graph.input('x', [5, 4]);
  const w = graph.parameter('w', [4, 3]);
  const y = silu(matmul(x, w));
  // All three lie in one buffer of inputs and one of results, at offsets.
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const inputs = device.createBuffer({ size: 1024, usage });
  const results = device.createBuffer({ size: 1024, usage });
  const staging = device.createBuffer({ size: 64, usage: GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST });
  const program = await compile(engine, graph, { outputs: [y], bindings: new Map([[x, { buffer: inputs, offset: 256 }], [w, { buffer: inputs, offset: 512 }], [y, { buffer: results, offset: 256 }]]) });
  const data = Float32Array.from({ length: 20 }, (_, i) => Math.sin(i));
  const weights = Float32Array.from({ length: 12 }, (_, i) => Math.cos(i));
  device.queue.writeBuffer(inputs, 512, weights);
  device.queue.writeBuffer(staging, 0, data.subarray(0, 10));
  device.queue.writeBuffer(inputs, 256 + 40, data.subarray(10));
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(staging, 0, inputs, 256, 40);
  program.encode(encoder);
  device.queue.submit([encoder.finish()]);
  const actual = new Float32Array(await engine.readBuffer({ buffer: results, offset: 256 }, y.bytes));
  for (let i = 0; i < 15; i++) {
    const v = [0, 1, 2, 3].reduce((sum, k) => sum + data[Math.floor(i / 3) * 4 + k]! * weights[k * 3 + (i % 3)]!, 0);
    expect(actual[i]).toBeCloseTo(v / (1 + Math.exp(-v)), 5);
  }
  program.destroy();
  // The caller's own, and nothing else.
  expect(live()).toEqual({ ...none, buffers: 3, bytes: 2112 });
  for (const buffer of [inputs, results, staging]) buffer.destroy();
});

describe('a sampler', () => {
  let pipeline: DDPMPipeline;
  let expected: GeneratedImages;
  beforeAll(async () => {
    pipeline = await DDPMPipeline.fromFolder(engine, directory(bundledModel()));
    expected = await pipeline.generate(options);
  });

  test('recorded step by step gives the bits of generate, as numbers, bytes and textures', async () => {
    const before = live();
    const sampler = await pipeline.createSampler(options);
    const output = await ImageOutput.create(engine, sampler.sampleView, sampler.sampleShape);
    const encoder = device.createCommandEncoder();
    sampler.encodeStart(encoder);
    for (let i = 0; i < sampler.stepCount; i++) sampler.encodeStep(encoder);
    output.encode(encoder);
    const texture = output.createTexture();
    output.copyToTexture(encoder, texture, 1);
    const readback = device.createBuffer({ size: 256 * 28, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
    encoder.copyTextureToBuffer({ texture }, { buffer: readback, bytesPerRow: 256 }, [28, 28]);
    device.queue.submit([encoder.finish()]);
    expect((await sampler.read()).map((v) => Math.min(Math.max(v / 2 + 0.5, 0), 1))).toEqual(expected.images);
    await readback.mapAsync(GPUMapMode.READ);
    const bytes = new Uint8Array(readback.getMappedRange().slice(0));
    const grey = Array.from({ length: 784 }, (_, p) => Array.from(bytes.subarray(Math.floor(p / 28) * 256 + (p % 28) * 4).subarray(0, 4)));
    expect(grey).toEqual(Array.from(expected.images.subarray(784), (v) => [toByte(v), toByte(v), toByte(v), 255]));
    // Once more, in the sampler's own submissions.
    await sampler.run();
    expect((await sampler.read()).map((v) => Math.min(Math.max(v / 2 + 0.5, 0), 1))).toEqual(expected.images);

    const small = device.createTexture({ size: [27, 28], format: 'rgba8unorm', usage: GPUTextureUsage.COPY_DST });
    const other = device.createTexture({ size: [28, 28], format: 'r32float', usage: GPUTextureUsage.COPY_DST });
    expect(() => output.copyToTexture(device.createCommandEncoder(), small)).toThrow('28 by 28 pixels at 0, 0 do not fit into a texture of 27 by 28');
    expect(() => output.copyToTexture(device.createCommandEncoder(), other)).toThrow("the texture's format is r32float");
    expect(() => output.copyToTexture(device.createCommandEncoder(), texture, 2)).toThrow('there is no image 2: there are 2');
    await expect(output.toImageData()).rejects.toThrow('there is no ImageData here');
    for (const each of [small, other, readback, output, sampler]) each.destroy();
    expect(live()).toEqual(before);
  });

  test('destroy() frees everything, after errors too', async () => {
    await expect(pipeline.generate({ ...options, sampleOffset: -1 })).rejects.toThrow('sampleOffset -1');
    const sampler = await pipeline.createSampler({ ...options, onPreview: () => undefined });
    await profile(sampler.stepProgram, { runs: 1 });
    sampler.destroy();
    pipeline.destroy();
    expect(live()).toEqual(none);
    expect(engine.liveBytes).toBe(0);
    // The device was the caller's.
    engine.destroy();
    await device.queue.onSubmittedWorkDone();
    device.createBuffer({ size: 4, usage: GPUBufferUsage.STORAGE }).destroy();
    device.destroy();
  });
});
