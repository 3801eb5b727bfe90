/** What the Inside tab says of a model against the same numbers worked out here, in float64, from activations that the engine's own interface gives. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Graph, type Tensor } from '../src/engine/graph';
import { scale } from '../src/engine/ops';
import { compile } from '../src/engine/program';
import { Engine } from '../src/engine/device';
import { Parameters } from '../src/model/parameters';
import { unet2d, unet2dInputs } from '../src/model/unet2d';
import { directory } from '../src/node/directory';
import { DDPMPipeline } from '../src/pipelines/ddpm';
import { InsideTab } from '../web/worker/inside';
import type { Picture, Views } from '../web/worker/view';
import { testDevice } from './helpers/device';

const block = 'down_blocks.2.attentions.0';
const [label, seed, step, steps] = [3, 7, 4, 10];

let engine: Engine;
let pipeline: DDPMPipeline;
let inside: InsideTab;
/** What was drawn last on each canvas: there is none here, and its picture is memory of the GPU. */
const drawn = new Map<string, Picture>();
/** Outputs of layers, NHWC. */
const activations = new Map<string, { data: Float32Array; shape: readonly number[] }>();

beforeAll(async () => {
  engine = await Engine.create({ device: await testDevice() });
  pipeline = await DDPMPipeline.fromFolder(engine, directory('models/digits'));
  inside = new InsideTab(engine, { draw: (name: string, picture: Picture) => void drawn.set(name, picture) } as unknown as Views, () => pipeline);
  await inside.open(label, seed);

  const previews: Float32Array[] = [];
  await pipeline.generate({ labels: [label], steps, seed, scheduler: 'ddim', guidanceScale: 1, onPreview: ({ sample }) => void previews.push(sample.slice()) });
  const graph = new Graph();
  const parameters = new Parameters(graph);
  const wanted = [`down_blocks.2.resnets.0`, `${block}.to_q`, `${block}.to_k`];
  const taps = new Map<string, Tensor>();
  const ctx = { graph, parameters, tap: (path: string, value: Tensor) => void taps.set(path, value), wantsTap: (path: string) => wanted.includes(path) };
  const inputs = unet2dInputs(ctx, pipeline.unet, [1, 28, 28]);
  unet2d(ctx, pipeline.unet, inputs);
  const outputs = wanted.map((path) => scale(taps.get(path)!, 1));
  const program = await compile(engine, graph, { outputs, bindings: pipeline.weights.bindings(parameters) });
  const sampler = await pipeline.createSampler({ labels: [label], steps, seed, scheduler: 'ddim', guidanceScale: 1 });
  program.write(inputs.sample, previews[step - 1]!);
  program.write(inputs.timestep, Float32Array.of(sampler.program.steps[step]!.timestep));
  program.write(inputs.classLabels!, Int32Array.of(label));
  program.run();
  for (const [i, path] of wanted.entries()) activations.set(path, { data: await program.read(outputs[i]!), shape: outputs[i]!.shape });
  program.destroy();
  sampler.destroy();
});
afterAll(() => {
  inside.close();
  pipeline.destroy();
  engine.destroy();
});

const moments = (values: readonly number[]): { mean: number; std: number } => {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return { mean, std: Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length) };
};

test('statistics of each group that a group norm sees', async () => {
  const { norm } = await inside.layer('layer', 'attention', `${block}.group_norm`, step);
  const { data, shape } = activations.get('down_blocks.2.resnets.0')!;
  const channels = shape.at(-1)!;
  const groups = pipeline.unet.norm_num_groups!;
  expect(norm!.groups).toBe(groups);
  for (let g = 0; g < groups; g++) {
    const { mean, std } = moments([...data].filter((_, i) => Math.floor((i % channels) / (channels / groups)) === g));
    expect(Math.abs(norm!.mean[g]! - mean)).toBeLessThan(1e-4 * std);
    expect(Math.abs(norm!.std[g]! / std - 1)).toBeLessThan(1e-4);
  }
});

test('every row of the attention maps', async () => {
  const { attention, statistics } = await inside.layer('layer', 'attention', `${block}.to_q`, step);
  const [q, k] = ['to_q', 'to_k'].map((name) => activations.get(`${block}.${name}`)!) as [{ data: Float32Array; shape: readonly number[] }, { data: Float32Array }];
  const [, tokens, channels] = q.shape as [number, number, number];
  const { heads } = attention!;
  expect([attention!.tokens, heads]).toEqual([tokens, channels / pipeline.unet.attention_head_dim!]);
  const { a, count, height, width } = drawn.get('attention')!;
  expect([count, height, width]).toEqual([heads, tokens, tokens]);
  const maps = new Float32Array(await engine.readBuffer(a, heads * tokens * tokens * 4));
  const dim = channels / heads;
  let worst = 0;
  for (let h = 0; h < heads; h++) {
    for (let i = 0; i < tokens; i++) {
      const scores = Array.from({ length: tokens }, (_, j) => Array.from({ length: dim }, (_, c) => q.data[i * channels + h * dim + c]! * k.data[j * channels + h * dim + c]!).reduce((x, y) => x + y, 0) / Math.sqrt(dim));
      const most = Math.max(...scores);
      const total = scores.reduce((n, s) => n + Math.exp(s - most), 0);
      for (const [j, s] of scores.entries()) worst = Math.max(worst, Math.abs(maps[(h * tokens + i) * tokens + j]! - Math.exp(s - most) / total));
    }
  }
  expect(worst).toBeLessThan(1e-5);
  // And what is said of the layer itself.
  const { mean, std } = moments([...q.data]);
  expect(Math.abs(statistics.mean - mean)).toBeLessThan(1e-4 * std);
  expect(Math.abs(statistics.std / std - 1)).toBeLessThan(1e-4);
});
