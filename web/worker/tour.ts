/** Experiments of the tour: each small enough for any adapter, all of it computed by the engine. */
import type { Engine } from '../../src/engine/device';
import { check } from '../../src/engine/errors';
import { estimate } from '../../src/engine/estimate';
import { Graph, type Tensor } from '../../src/engine/graph';
import * as ops from '../../src/engine/ops';
import { compile, tensorUsage } from '../../src/engine/program';
import { normals, RngStream, seedKey, uniforms } from '../../src/engine/rng';
import type { ImageDataset } from '../../src/data/dataset';
import { linear } from '../../src/model/layers';
import { Parameters } from '../../src/model/parameters';
import { parseTransformer2DConfig, transformer2d, transformer2dInputs } from '../../src/model/transformer2d';
import { parseUNet2DConfig, unet2d, unet2dInputs } from '../../src/model/unet2d';
import { DDPMPipeline, schedulerNames, type SchedulerName } from '../../src/pipelines/ddpm';
import { DiffusionProcess } from '../../src/sampler/diffusion_process';
import { createGpuSampler, type GpuSampler } from '../../src/sampler/sample';
import { convertSchedulerConfig, createSampler, noiseTables, parseSchedulerConfig } from '../../src/sampler/scheduler_config';
import { TrainingStep } from '../../src/train/step';
import { openSource } from './models';
import { mnist } from './train';
import { Trajectory } from './trajectory';
import type { CanvasSize, Views } from './view';

const { add, concat, copyInto, mul, randomNormal, reshape, silu, timestepEmbedding } = ops;

export interface ForwardResult {
  /** Counts of (x_t − √ᾱ·x_0) / √(1−ᾱ) between −4 and 4. */
  readonly chain: readonly number[];
  readonly closed: readonly number[];
  /** Largest distance between the two distribution functions (Kolmogorov and Smirnov), and what chance gives in 1 of 20 cases. */
  readonly distance: number;
  readonly critical: number;
  readonly alphaBar: number;
  readonly sizes: readonly (CanvasSize | undefined)[];
}

export interface ToyState {
  readonly step: number;
  readonly loss: number;
  readonly shape: ToyShape;
  /** x, y, x, y, … */
  readonly data: Float32Array;
}

export type ToyShape = 'spiral' | 'moons' | 'ring' | 'islands';

/** A denoiser of points, and samplers of its averaged weights by what they were compiled for. */
interface Toy {
  readonly step: TrainingStep;
  readonly samplers: Map<string, Promise<{ sampler: GpuSampler; total: number }>>;
  shape: ToyShape;
  done: number;
}

export interface MemoryResult extends Omit<ForwardResult, 'alphaBar' | 'sizes'> {
  /** Standard deviations of the residuals of chain and closed form. */
  readonly deviations: readonly [number, number];
}

export interface DriftResult {
  /** Points of the distribution as it is at the end of the training, and what the model makes. */
  readonly data: Float32Array;
  readonly made: Float32Array;
  /** By how much the mean of what is made lies behind the mean of the data, along the way that they went. */
  readonly behind: number;
}

export interface JumpResult {
  readonly data: Float32Array;
  /** By number of steps: points, and the share of them in the gap. */
  readonly made: readonly { readonly steps: number; readonly points: Float32Array; readonly between: number }[];
}

const copies = 64;
const toyPoints = 256;
const side = 28;

export class TourTab {
  private data: Promise<ImageDataset> | undefined;
  private model: Promise<DDPMPipeline> | undefined;
  private toy: Toy | undefined;

  constructor(
    private readonly engine: Engine,
    private readonly views: Views,
  ) {}

  private digits(): Promise<ImageDataset> {
    return (this.data ??= mnist());
  }

  private pipeline(): Promise<DDPMPipeline> {
    this.model ??= DDPMPipeline.fromFolder(this.engine, openSource({ kind: 'bundled', model: 'digits' }, () => undefined));
    return this.model;
  }

  /** Noises one digit `t` times by one small step each, and once by the closed form; `repeat` takes the same noise in every step, which the chain may not do. */
  async forward(chainCanvas: string, closedCanvas: string, t: number, repeat: boolean): Promise<ForwardResult> {
    const digit = (await (await this.digits()).get(4321)).image;
    const { betas, alphasCumprod } = noiseTables((await this.pipeline()).scheduler);
    const process = new DiffusionProcess(betas, alphasCumprod);
    const shape = [copies, 1, side, side] as const;
    const graph = new Graph();
    const x = graph.state('x', shape);
    const [signal, amount] = [graph.input('signal', [1]), graph.input('noise', [1])];
    const step = graph.input('step', [1], 'u32');
    const samples = graph.constant('samples', [copies], Uint32Array.from({ length: copies }, (_, i) => i));
    const seed = graph.constant('seed', [2], Uint32Array.from(seedKey(11)));
    copyInto(x, add(mul(x, signal), mul(randomNormal({ graph, shape, seed, samples, step, stream: RngStream.noise }), amount)));
    const program = await compile(this.engine, graph, { outputs: [x], label: 'forward process' });
    const start = new Float32Array(copies * side * side);
    for (let n = 0; n < copies; n++) start.set(digit, n * side * side);
    const apply = (coefficients: { signal: number; noise: number }, draw: number): void => {
      program.write(signal, Float32Array.of(coefficients.signal));
      program.write(amount, Float32Array.of(coefficients.noise));
      program.write(step, Uint32Array.of(draw));
      program.run();
    };
    const picture = { a: program.view(x), count: 16, channels: 1, height: side, width: side, range: [-2, 2] as const, zoom: 4 };
    const residuals = async (): Promise<Float32Array> => {
      const { signal: s, noise: n } = process.qSample(t);
      return (await program.read(x)).map((v, i) => (v - s * start[i]!) / n);
    };
    try {
      program.write(x, start);
      for (let k = 0; k <= t; k++) apply(process.qStep(k), repeat ? 1 : k + 1);
      const first = this.views.draw(chainCanvas, picture);
      const chain = await residuals();
      program.write(x, start);
      apply(process.qSample(t), 5000);
      const second = this.views.draw(closedCanvas, picture);
      const closed = await residuals();
      const [a, b] = [chain.slice().sort(), closed.slice().sort()];
      return { chain: histogram(chain), closed: histogram(closed), distance: kolmogorov(a, b), critical: 1.36 * Math.sqrt(2 / a.length), alphaBar: process.alphaBar(t), sizes: [first, second] };
    } finally {
      program.destroy();
    }
  }

  /** A trajectory of the bundled model as two strips, x_t and the predicted x_0. */
  async reverse(noisy: string, predicted: string, label: number, steps: number, seed: number): Promise<readonly (CanvasSize | undefined)[]> {
    const pipeline = await this.pipeline();
    const sampler = await pipeline.createSampler({ labels: [label], steps, seed, preview: true });
    const trajectory = new Trajectory(this.engine, sampler.sampleShape, sampler.program, pipeline.scheduler);
    try {
      await sampler.run({
        onQueued: (step) => {
          trajectory.keep(step, sampler);
        },
      });
      const strip = (name: string, quantity: 'sample' | 'x0', count: number) => this.views.draw(name, { ...trajectory.picture(0, quantity), factors: [1, 0], range: quantity === 'sample' ? [-1.5, 1.5] : [-1, 1], count, columns: count, zoom: 3 });
      const sizes = [strip(noisy, 'sample', steps + 1), strip(predicted, 'x0', steps)];
      await this.engine.device.queue.onSubmittedWorkDone();
      return sizes;
    } finally {
      sampler.destroy();
      trajectory.destroy();
    }
  }

  /** One call of the model for digit `label` noised to `t`: x_t, what the model returns (v), and the x_0 and ε that this stands for, beside the true x_0. */
  async prediction(canvas: string, t: number): Promise<{ readonly size: CanvasSize | undefined; readonly signal: number; readonly noise: number }> {
    const pipeline = await this.pipeline();
    const { image, label } = await (await this.digits()).get(2222);
    const { betas, alphasCumprod } = noiseTables(pipeline.scheduler);
    const { signal, noise } = new DiffusionProcess(betas, alphasCumprod).qSample(t);
    const graph = new Graph();
    const parameters = new Parameters(graph);
    const clean = graph.input('clean', [1, 1, side, side]);
    const step = graph.constant('step', [1], Uint32Array.of(t));
    const epsilon = randomNormal({ graph, shape: [1, 1, side, side], seed: graph.constant('seed', [2], Uint32Array.from(seedKey(3))), samples: graph.constant('samples', [1], Uint32Array.of(0)), step, stream: RngStream.noise });
    const sample = add(ops.scale(clean, signal), ops.scale(epsilon, noise));
    const v = unet2d({ graph, parameters }, pipeline.unet, { sample, timestep: graph.constant('t', [1], Float32Array.of(t)), classLabels: graph.constant('label', [1], Int32Array.of(label)) });
    // v = √ᾱ·ε − √(1−ᾱ)·x_0, so both can be had from v and x_t.
    const x0 = ops.sub(ops.scale(sample, signal), ops.scale(v, noise));
    const predictedNoise = add(ops.scale(v, signal), ops.scale(sample, noise));
    const all = concat([sample, v, x0, predictedNoise, clean], 0);
    const program = await compile(this.engine, graph, { outputs: [all], bindings: pipeline.weights.bindings(parameters), label: 'prediction' });
    try {
      program.write(clean, image);
      program.run();
      const size = this.views.draw(canvas, { a: program.view(all), count: 5, columns: 5, channels: 1, height: side, width: side, range: [-1.6, 1.6], zoom: 6 });
      await program.done();
      return { size, signal, noise };
    } finally {
      program.destroy();
    }
  }

  /** What a denoiser would take, by the engine's own plan; nothing is computed. */
  async denoiser(kind: 'unet' | 'transformer', width: number, depth: number, pixels: number): Promise<{ readonly parameters: number; readonly flops: number; readonly bytes: number; readonly dispatches: number }> {
    const graph = new Graph();
    const parameters = new Parameters(graph);
    const ctx = { graph, parameters };
    let output: Tensor;
    if (kind === 'unet') {
      const blocks = Array.from({ length: depth }, (_, i) => width * 2 ** Math.min(i, 2));
      const config = parseUNet2DConfig({
        sample_size: pixels,
        block_out_channels: blocks,
        down_block_types: blocks.map((_, i) => (i === depth - 1 ? 'AttnDownBlock2D' : 'DownBlock2D')),
        up_block_types: blocks.map((_, i) => (i === 0 ? 'AttnUpBlock2D' : 'UpBlock2D')),
        norm_num_groups: 8,
        attention_head_dim: width,
      });
      output = unet2d(ctx, config, unet2dInputs(ctx, config, [1, pixels, pixels]));
    } else {
      const config = parseTransformer2DConfig({ num_attention_heads: width / 16, attention_head_dim: 16, in_channels: 3, out_channels: 3, num_layers: 3 * depth, attention_bias: true, sample_size: pixels, patch_size: 2, activation_fn: 'gelu-approximate', num_embeds_ada_norm: 10, norm_type: 'ada_norm_zero', norm_elementwise_affine: false });
      output = transformer2d(ctx, config, transformer2dInputs(ctx, config, [1, pixels, pixels]));
    }
    const { plannedBytes, dispatches } = estimate(graph, [output], this.engine.profile);
    return {
      parameters: [...parameters.tensors.values()].reduce((n, t) => n + t.bytes / 4, 0),
      flops: graph.nodes.reduce((n, node) => n + node.op.flops(node.inputs, node.outputs, node.attrs as never), 0),
      bytes: plannedBytes,
      dispatches,
    };
  }

  /** One seed under growing guidance, side by side. */
  async guidance(canvas: string, label: number, seed: number, scales: readonly number[]): Promise<CanvasSize | undefined> {
    const pipeline = await this.pipeline();
    const sampler = await pipeline.createSampler({ labels: [label], steps: 8, seed, guidanceScale: 2 });
    const bytes = sampler.sampleShape.reduce((a, b) => a * b, 4);
    const buffer = this.engine.createBuffer('tour.guidance', bytes * scales.length, tensorUsage);
    try {
      for (const [i, guidanceScale] of scales.entries()) {
        sampler.set({ guidanceScale });
        await sampler.run();
        const encoder = this.engine.device.createCommandEncoder();
        const { buffer: from, offset } = sampler.sampleView;
        encoder.copyBufferToBuffer(from, offset, buffer, i * bytes, bytes);
        this.engine.device.queue.submit([encoder.finish()]);
      }
      const size = this.views.draw(canvas, { a: { buffer, offset: 0 }, count: scales.length, columns: scales.length, channels: 1, height: side, width: side, zoom: 5 });
      await this.engine.device.queue.onSubmittedWorkDone();
      return size;
    } finally {
      sampler.destroy();
      this.engine.destroyBuffer(buffer);
    }
  }

  /** Noises points ±1 by `t` steps whose noise remembers the step before, ε_t = ρ·ε_{t−1} + √(1−ρ²)·η, and at once by the closed form, which knows of no memory. */
  async memory(t: number, rho: number): Promise<MemoryResult> {
    const count = 8192;
    const { betas, alphasCumprod } = noiseTables(toyScheduler);
    const process = new DiffusionProcess(betas, alphasCumprod);
    const graph = new Graph();
    const [x, e] = [graph.state('x', [count, 1]), graph.state('e', [count, 1])];
    const coefficients = ['kept', 'fresh', 'signal', 'noise'].map((name) => graph.input(name, [1]));
    const [kept, fresh, signal, amount] = coefficients as [Tensor, Tensor, Tensor, Tensor];
    const step = graph.input('step', [1], 'u32');
    const samples = graph.constant('samples', [count], Uint32Array.from({ length: count }, (_, i) => i));
    const seed = graph.constant('seed', [2], Uint32Array.from(seedKey(12)));
    const epsilon = add(mul(e, kept), mul(randomNormal({ graph, shape: [count, 1], seed, samples, step, stream: RngStream.noise }), fresh));
    copyInto(x, add(mul(x, signal), mul(epsilon, amount)));
    copyInto(e, epsilon);
    const program = await compile(this.engine, graph, { outputs: [x], label: 'noise with memory' });
    const start = Float32Array.from({ length: count }, (_, i) => (i % 2 ? 1 : -1));
    const apply = (correlation: number, by: { signal: number; noise: number }, draw: number): void => {
      for (const [i, value] of [correlation, Math.sqrt(1 - correlation ** 2), by.signal, by.noise].entries()) program.write(coefficients[i]!, Float32Array.of(value));
      program.write(step, Uint32Array.of(draw));
      program.run();
    };
    const residuals = async (): Promise<Float32Array> => {
      const { signal: s, noise: n } = process.qSample(t);
      return (await program.read(x)).map((v, i) => (v - s * start[i]!) / n);
    };
    try {
      program.write(e, new Float32Array(count));
      program.write(x, start);
      for (let k = 0; k <= t; k++) apply(k === 0 ? 0 : rho, process.qStep(k), k + 1);
      const chain = await residuals();
      program.write(x, start);
      apply(0, process.qSample(t), 5000);
      const closed = await residuals();
      const deviation = (values: Float32Array): number => Math.sqrt(values.reduce((n, v) => n + v * v, 0) / count);
      return { chain: histogram(chain), closed: histogram(closed), distance: kolmogorov(chain.slice().sort(), closed.slice().sort()), critical: 1.36 * Math.sqrt(2 / count), deviations: [deviation(chain), deviation(closed)] };
    } finally {
      program.destroy();
    }
  }

  /** Trains on a cloud that goes from left to right in the course of `steps` steps, or stands where that ends, and samples. */
  async drift(moves: boolean, steps: number): Promise<DriftResult> {
    const toy = await this.newToy('islands');
    try {
      for (; toy.done < steps; toy.done++) {
        toy.step.write({ images: cloud(moves ? -1.3 + (2.6 * toy.done) / (steps - 1) : 1.3, toy.done) });
        toy.step.run();
        if (toy.done % 50 === 49) await toy.step.metrics(toy.done);
      }
      const made = (await this.sampleToy(toy, 'ddim', 20, 1)).at(-1)!;
      const data = cloud(1.3, 1e6);
      const middle = (points: Float32Array): number => points.reduce((n, v, i) => (i % 2 ? n : n + v), 0) / toyPoints;
      return { data, made, behind: middle(data) - middle(made) };
    } finally {
      closeToy(toy);
    }
  }

  /** Trains on two islands with nothing between them and samples in each number of steps. */
  async jump(training: number, each: readonly number[]): Promise<JumpResult> {
    const toy = await this.newToy('islands');
    try {
      await this.trainToy(toy, training, () => undefined);
      const made: JumpResult['made'][number][] = [];
      for (const steps of each) {
        const points = (await this.sampleToy(toy, 'ddim', steps, 4)).at(-1)!;
        let between = 0;
        for (let i = 0; i < toyPoints; i++) if (Math.abs(points[2 * i]!) < shore) between++;
        made.push({ steps, points, between: between / toyPoints });
      }
      return { data: toyData('islands', toyPoints, 1e6), made };
    } finally {
      closeToy(toy);
    }
  }

  /** Trains a denoiser of points in the plane for `steps` steps; goes on where it stands unless `fresh`. The same step that trains on images. */
  async toyTrain(shape: ToyShape, steps: number, fresh: boolean, on: (state: ToyState) => void): Promise<void> {
    if (fresh && this.toy) {
      closeToy(this.toy);
      this.toy = undefined;
    }
    this.toy ??= await this.newToy(shape);
    this.toy.shape = shape;
    await this.trainToy(this.toy, steps, on);
  }

  /** Other data from the next step on, of a training that is going on, too. */
  toyShape(shape: ToyShape): void {
    if (this.toy) this.toy.shape = shape;
  }

  private async newToy(shape: ToyShape): Promise<Toy> {
    const { betas, alphasCumprod } = noiseTables(toyScheduler);
    const step = await TrainingStep.create(this.engine, {
      batch: [toyPoints, 2, 1, 1],
      buildModel: toyModel,
      process: new DiffusionProcess(betas, alphasCumprod),
      loss: { predictionType: 'epsilon' },
      optimizer: { kind: 'adamw', beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0, maxGradNorm: 1 },
      learningRates: new Float32Array(20000).fill(3e-3),
      emaDecay: 0.99,
      seed: 5,
      labelled: false,
    });
    step.weights.initialise(5);
    step.ema.copyFrom(step.weights);
    return { step, shape, done: 0, samplers: new Map() };
  }

  /** Reading the losses now and then lets in what the page says meanwhile. */
  private async trainToy(toy: Toy, steps: number, on: (state: ToyState) => void): Promise<void> {
    const end = toy.done + steps;
    while (toy.done < end) {
      const { shape } = toy;
      const data = toyData(shape, toyPoints, toy.done);
      toy.step.write({ images: data });
      toy.step.run();
      toy.done++;
      if (toy.done % 25 === 0 || toy.done === end) {
        const rows = await toy.step.metrics(Math.max(0, toy.done - 25));
        on({ step: toy.done, loss: rows.reduce((n, r) => n + r.loss, 0) / rows.length, shape, data });
      }
    }
  }

  /** Points that a trained denoiser makes of noise, after each step. */
  private async sampleToy(toy: Toy, scheduler: SchedulerName, steps: number, seed: number): Promise<Float32Array[]> {
    const key = `${scheduler} ${steps}`;
    let known = toy.samplers.get(key);
    if (!known) {
      known = (async () => {
        const program = createSampler(convertSchedulerConfig(toyScheduler, schedulerNames[scheduler]), { numInferenceSteps: steps });
        let parameters: Parameters | undefined;
        const sampler = await createGpuSampler(this.engine, {
          program,
          shape: [toyPoints, 2, 1, 1],
          model: (graph, x, t) => {
            parameters = new Parameters(graph);
            return toyModel({ graph, parameters }, x, t);
          },
          bindings: () => toy.step.emaBindings(parameters!),
          preview: true,
        });
        return { sampler, total: program.steps.length };
      })();
      toy.samplers.set(key, known);
    }
    const { sampler, total } = await known;
    sampler.set({ seed });
    const frames: Float32Array[] = [];
    await sampler.run({ onPreview: ({ sample }) => void frames.push(sample), previewEvery: Math.max(1, Math.floor(total / 30)) });
    return frames;
  }

  /** {@link sampleToy} of the denoiser of part 7, and the mean distance of the points to its data. */
  async toySample(scheduler: SchedulerName, steps: number, seed: number): Promise<{ readonly frames: readonly Float32Array[]; readonly distance: number }> {
    const { toy } = this;
    check(toy, 'input', () => 'train the denoiser first');
    const frames = await this.sampleToy(toy, scheduler, steps, seed);
    const made = frames.at(-1)!;
    const data = toyData(toy.shape, 2000, 1e6);
    let sum = 0;
    for (let i = 0; i < toyPoints; i++) {
      let best = Infinity;
      for (let j = 0; j < 2000; j++) best = Math.min(best, (made[2 * i]! - data[2 * j]!) ** 2 + (made[2 * i + 1]! - data[2 * j + 1]!) ** 2);
      sum += Math.sqrt(best);
    }
    return { frames, distance: sum / toyPoints };
  }

  /** WGSL of the first convolution of the bundled model as it runs here, with the line that multiplies and adds. */
  async firstConvolution(): Promise<{ readonly kernel: string; readonly text: string; readonly line: number }> {
    const pipeline = await this.pipeline();
    const sampler = await pipeline.createSampler({ labels: [0], steps: 2 });
    try {
      const step = sampler.stepProgram.steps.find((s) => s.node.op.name === 'conv2d')!;
      const lines = step.info.text.split('\n');
      const line = lines.findIndex((l) => /\bfma\(|\+=.*\*/.test(l));
      return { kernel: `${step.info.file}:${step.info.entry}`, text: step.info.text, line };
    } finally {
      sampler.destroy();
    }
  }
}

function closeToy({ step, samplers }: Toy): void {
  for (const each of samplers.values()) void each.then(({ sampler }) => sampler.destroy(), () => undefined);
  step.destroy();
}

const toyScheduler = parseSchedulerConfig({ _class_name: 'DDPMScheduler', num_train_timesteps: 1000, beta_schedule: 'squaredcos_cap_v2', clip_sample: false });

/** Three layers of 128, for points as images of two channels and one pixel. Waves of the coordinates let so small a network tell near points apart (Tancik et al. 2020). */
function toyModel(ctx: { graph: Graph; parameters: Parameters }, x: Tensor, timestep: Tensor): Tensor {
  const n = x.shape[0]!;
  const waves = (t: Tensor): Tensor => timestepEmbedding(t, { dim: 32, flipSinToCos: true, freqShift: 0 });
  const coordinate = (axis: number): Tensor => waves(ops.scale(reshape(ops.slice(x, 1, axis, 1), [n]), 25));
  let h = concat([reshape(x, [n, 2]), coordinate(0), coordinate(1), waves(timestep)], 1);
  for (const name of ['in', 'middle', 'second']) h = silu(linear(ctx, name, h, 128));
  return reshape(linear(ctx, 'out', h, 2), [n, 2, 1, 1]);
}

/** The islands lie at |x| from 0.95 to 1.45: nothing of them is nearer to the middle than this by far. */
const shore = 0.7;

/** Points around (x, 0), with a standard deviation of 0.15. */
const cloud = (x: number, step: number): Float32Array => normals(18, { index: step, step: 0, stream: 77 }, 2 * toyPoints).map((v, i) => 0.15 * v + (i % 2 ? 0 : x));

function toyData(shape: ToyShape, count: number, step: number): Float32Array {
  const u = uniforms(17, { index: step, step: 0, stream: 77 }, count);
  const out = new Float32Array(2 * count);
  for (let i = 0; i < count; i++) {
    if (shape === 'spiral') {
      const angle = 3 * Math.PI * (0.15 + 0.85 * Math.sqrt(u[i]!));
      out.set([(angle / (3 * Math.PI)) * Math.cos(angle) * 1.6, (angle / (3 * Math.PI)) * Math.sin(angle) * 1.6], 2 * i);
    } else if (shape === 'islands') out.set([(i % 2 ? 1.2 : -1.2) + 0.25 * Math.cos(7 * Math.PI * u[i]!), 0.25 * Math.sin(7 * Math.PI * u[i]!)], 2 * i);
    else if (shape === 'ring') out.set([1.3 * Math.cos(2 * Math.PI * u[i]!), 1.3 * Math.sin(2 * Math.PI * u[i]!)], 2 * i);
    else {
      const angle = Math.PI * u[i]!;
      out.set(i % 2 ? [Math.cos(angle) - 0.5, Math.sin(angle) - 0.25] : [0.5 - Math.cos(angle), 0.25 - Math.sin(angle)], 2 * i);
    }
  }
  return out;
}

const bins = 64;

function histogram(values: Float32Array): number[] {
  const counts = new Array<number>(bins).fill(0);
  for (const v of values) {
    const bin = Math.floor(((v + 4) / 8) * bins);
    if (bin >= 0 && bin < bins) counts[bin]! += 1;
  }
  return counts;
}

/** Largest distance of two empirical distribution functions; both sorted. */
function kolmogorov(a: Float32Array, b: Float32Array): number {
  let [i, j, worst] = [0, 0, 0];
  while (i < a.length && j < b.length) {
    if (a[i]! <= b[j]!) i++;
    else j++;
    worst = Math.max(worst, Math.abs(i / a.length - j / b.length));
  }
  return worst;
}
