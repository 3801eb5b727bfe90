/** The Inside tab's half in the worker: dispatches of the running model with their times, layers and what is in them, memory, a step kernel by kernel. */
import type { Engine } from '../../src/engine/device';
import { BruitError, check } from '../../src/engine/errors';
import { Graph, type Tensor } from '../../src/engine/graph';
import type { Bindable } from '../../src/engine/op';
import * as ops from '../../src/engine/ops';
import { measurePeak, type Peak } from '../../src/engine/peak';
import { compile, type Program, type Step } from '../../src/engine/program';
import { profile } from '../../src/engine/profiler';
import { dtypeBytes, numel, type Shape } from '../../src/engine/shape';
import { Parameters, storedShape } from '../../src/model/parameters';
import { unet2d, unet2dInputs } from '../../src/model/unet2d';
import type { DDPMPipeline } from '../../src/pipelines/ddpm';
import type { GpuSampler } from '../../src/sampler/sample';
import { convertSchedulerConfig } from '../../src/sampler/scheduler_config';
import { Trajectory } from './trajectory';
import type { CanvasSize, Picture, Views } from './view';

export interface OperandInfo {
  readonly name: string;
  readonly access: 'read' | 'write' | 'uniform';
  readonly shape: Shape;
  readonly dtype: string;
  readonly bytes: number;
  readonly what: string;
}

export interface DispatchInfo {
  readonly label: string;
  readonly op: string;
  readonly path: string;
  readonly kernel: string;
  readonly workgroups: number;
  readonly flops: number;
  readonly bytes: number;
  /** Numbers of the dispatches whose results it reads. */
  readonly after: readonly number[];
  readonly shape: Shape;
}

/** A value's place: buffer, and first and last dispatch of its life. */
export interface Life {
  readonly label: string;
  readonly slot: number;
  readonly first: number;
  readonly last: number;
  readonly bytes: number;
}

export interface Overview {
  readonly model: string;
  readonly steps: number;
  readonly dispatches: readonly DispatchInfo[];
  readonly layers: readonly string[];
  readonly weights: readonly { readonly name: string; readonly shape: Shape }[];
  readonly lives: readonly Life[];
  readonly slots: readonly number[];
  readonly plannedBytes: number;
  readonly naiveBytes: number;
  readonly peakLiveBytes: number;
}

export interface DispatchDetail {
  readonly wgsl: string;
  readonly operands: readonly OperandInfo[];
  readonly params: Readonly<Record<string, number>>;
}

export interface Times {
  /** Nanoseconds by dispatch, median; absent without timestamps. */
  readonly each: readonly number[] | undefined;
  readonly total: number;
  readonly peak: Peak;
}

export interface Statistics {
  readonly shape: Shape;
  readonly min: number;
  readonly max: number;
  readonly mean: number;
  readonly std: number;
  readonly histogram: { readonly from: number; readonly to: number; readonly counts: readonly number[] };
}

export interface Shown {
  readonly statistics: Statistics;
  readonly size: CanvasSize | undefined;
  /** Maps that are drawn, and how many there are. */
  readonly drawn: readonly [number, number];
}

export interface LayerDetail extends Shown {
  readonly attention: { readonly heads: number; readonly tokens: number; readonly size: CanvasSize | undefined } | undefined;
  readonly norm: { readonly groups: number; readonly mean: readonly number[]; readonly std: readonly number[] } | undefined;
}

const { groupNorm, matmul, mean, reshape, scale, softmax, square, sub, transpose } = ops;

const trajectorySteps = 10;
const mostMaps = 64;

export class InsideTab {
  private pipeline: DDPMPipeline | undefined;
  private running: GpuSampler | undefined;
  private trajectory: Trajectory | undefined;
  private label: number | undefined;
  private inspected: { program: Program; path: string } | undefined;

  constructor(
    private readonly engine: Engine,
    private readonly views: Views,
    private readonly current: () => DDPMPipeline | undefined,
  ) {}

  /** Compiles a sampler for one image of the model that the Sample tab has loaded, and runs it once for something to look at. */
  async open(label: number, seed: number): Promise<Overview> {
    const pipeline = this.current();
    if (!pipeline) throw new BruitError('input', 'Inside looks into U-Nets that work on pixels: load one in the Sample tab');
    this.close();
    this.pipeline = pipeline;
    const labelled = pipeline.unet.num_class_embeds !== null && pipeline.unet.class_embed_type === null;
    this.label = labelled ? Math.min(label, pipeline.unet.num_class_embeds! - 1) : undefined;
    this.running = await pipeline.createSampler({ count: 1, steps: trajectorySteps, scheduler: 'ddim', ...(this.label !== undefined && { labels: [this.label] }), guidanceScale: 1, size: pipeline.unet.sample_size ?? [64, 64], seed, preview: true });
    const sampler = this.running;
    this.trajectory = new Trajectory(this.engine, sampler.sampleShape, sampler.program, convertSchedulerConfig(pipeline.scheduler, 'DDIMScheduler'));
    await sampler.run({ onQueued: (step) => this.trajectory!.keep(step, sampler) });

    const { steps, plan } = sampler.stepProgram;
    const { taps } = this.build(() => false);
    const written = new Map<Bindable, number>();
    const dispatches = steps.map((step, i): DispatchInfo => {
      const after = new Set<number>();
      for (const [name, t] of Object.entries(step.operands)) {
        const from = written.get(rootOf(t));
        if (from !== undefined && from !== i) after.add(from);
        if (isWritten(step, name)) written.set(rootOf(t), i);
      }
      return { label: step.label, op: step.node.op.name, path: step.node.path, kernel: `${step.info.file}:${step.info.entry}`, workgroups: step.workgroups[0] * step.workgroups[1], flops: step.cost.flops, bytes: step.cost.bytes, after: [...after], shape: resultOf(step).shape };
    });
    const { lives, slots } = this.lives();
    return {
      model: pipeline.name,
      steps: trajectorySteps,
      dispatches,
      layers: [...taps.keys()],
      weights: pipeline.weights.specs.map(({ name, shape: s }) => ({ name, shape: s })),
      lives,
      slots,
      plannedBytes: plan.plannedBytes,
      naiveBytes: plan.naiveBytes,
      peakLiveBytes: plan.peakLiveBytes,
    };
  }

  dispatch(index: number): DispatchDetail {
    const step = this.steps()[index];
    check(step, 'input', () => `there is no dispatch ${index}`);
    const operands = Object.entries(step.operands).map(([name, t]): OperandInfo => ({
      name,
      access: isWritten(step, name) ? 'write' : 'read',
      shape: t.shape,
      dtype: t.dtype,
      bytes: numel(t.shape) * dtypeBytes[t.dtype],
      what: 'temp' in t ? `workspace ${t.label}` : t.kind === 'value' ? `result of ${t.node!.op.name} ${t.node!.path}` : `${t.kind} ${t.name}`,
    }));
    return { wgsl: step.info.text, operands, params: step.params };
  }

  /** Times every dispatch; the state of the trajectory is put back afterwards. */
  async times(): Promise<Times> {
    const sampler = this.opened();
    const peak = await measurePeak(this.engine);
    const measured = await profile(sampler.stepProgram, { runs: 3 });
    return { each: measured.note ? undefined : measured.steps.map((s) => s.time!.median), total: measured.total, peak };
  }

  /** Runs denoising step `step` up to and with dispatch `index`, and draws what that dispatch has written. */
  async until(canvas: string, step: number, index: number): Promise<Shown> {
    const sampler = this.opened();
    const { stepProgram } = sampler;
    const dispatch = stepProgram.steps[index];
    check(dispatch, 'input', () => `there is no dispatch ${index}`);
    await this.prepare(step);
    const { device } = this.engine;
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    for (const each of stepProgram.steps.slice(0, index + 1)) {
      pass.setPipeline(each.pipeline);
      pass.setBindGroup(0, each.bindGroup, each.offsets);
      pass.dispatchWorkgroups(each.workgroups[0], each.workgroups[1]);
    }
    pass.end();
    device.queue.submit([encoder.finish()]);
    return this.show(canvas, stepProgram, resultOf(dispatch));
  }

  /** The output of a layer at denoising step `step`, with attention maps and group statistics where it has them. */
  async layer(canvas: string, attentionCanvas: string, path: string, step: number): Promise<LayerDetail> {
    const { pipeline, trajectory, label } = this;
    check(pipeline && trajectory, 'input', () => 'open a model first');
    this.inspected?.program.destroy();
    this.inspected = undefined;
    const { graph, parameters, taps, norms, attention, inputs } = this.build((p) => p === path, path);
    const tapped = taps.get(path);
    check(tapped, 'input', () => `the model has no layer ${path}`);
    const norm = norms.get(path);
    const maps = attention();
    // A copy: what is tapped may be fused away or shared.
    const value = scale(tapped, 1);
    const outputs = [value, ...(norm ? [norm.mean, norm.variance] : []), ...(maps ? [maps.maps] : [])];
    const program = await compile(this.engine, graph, { outputs, bindings: pipeline.weights.bindings(parameters), label: path });
    this.inspected = { program, path };
    program.write(inputs.sample, await this.sampleAt(step));
    const { timestep } = trajectory.level(step);
    program.write(inputs.timestep, Float32Array.of(timestep));
    if (inputs.classLabels) program.write(inputs.classLabels, Int32Array.of(label!));
    program.run();
    const shown = await this.show(canvas, program, value);
    let attentionInfo: LayerDetail['attention'];
    if (maps) {
      const [heads, tokens] = maps.maps.shape as [number, number];
      const sizeOf = this.views.draw(attentionCanvas, { a: program.view(maps.maps), count: heads, channels: 1, height: tokens, width: tokens, range: [0, Math.min(1, 4 / tokens)] });
      attentionInfo = { heads, tokens, size: sizeOf };
    }
    let normInfo: LayerDetail['norm'];
    if (norm) {
      const [m, v] = [await program.read(norm.mean), await program.read(norm.variance)];
      normInfo = { groups: m.length, mean: [...m], std: [...v].map(Math.sqrt) };
    }
    return { ...shown, attention: attentionInfo, norm: normInfo };
  }

  /** A weight, drawn as it lies in memory: convolutions as their filters, matrices whole. */
  async weight(canvas: string, name: string): Promise<Shown> {
    const { pipeline } = this;
    check(pipeline, 'input', () => 'open a model first');
    const spec = pipeline.weights.specs.find((s) => s.name === name);
    check(spec, 'input', () => `the model has no weight ${name}`);
    const data = await pipeline.weights.read(name);
    const statistics = statisticsOf(data, spec.shape);
    const stored = storedShape(spec.shape, spec.layout);
    const bound = 3 * statistics.std || 1;
    const common = { a: pipeline.weights.view(name), range: [statistics.mean - bound, statistics.mean + bound], scale: 'signed', channels: 1 } as const;
    let picture: Picture;
    let drawn: readonly [number, number] = [1, 1];
    if (spec.layout === 'conv') {
      const [r, s, c, k] = stored as [number, number, number, number];
      const count = Math.min(c * k, 256);
      drawn = [count, c * k];
      picture = { ...common, count, height: r, width: s, strides: [1, 0, s * c * k, c * k], columns: 16 };
    } else {
      const [rows, columns] = stored.length > 1 ? (stored as [number, number]) : [1, stored[0]!];
      picture = { ...common, count: 1, height: rows, width: columns, strides: [0, 0, columns, 1] };
    }
    return { statistics, size: this.views.draw(canvas, picture), drawn };
  }

  close(): void {
    this.inspected?.program.destroy();
    this.running?.destroy();
    this.trajectory?.destroy();
    this.inspected = this.running = this.trajectory = undefined;
  }

  private opened(): GpuSampler {
    check(this.running, 'input', () => 'open a model first');
    return this.running;
  }

  private steps(): readonly Step[] {
    return this.opened().stepProgram.steps;
  }

  /** The U-Net again, with its layers' outputs by path. `keep` says which of them must exist in memory. */
  private build(keep: (path: string) => boolean, attentionAt?: string) {
    const pipeline = this.pipeline!;
    const { unet } = pipeline;
    const graph = new Graph();
    const parameters = new Parameters(graph);
    const taps = new Map<string, Tensor>();
    const norms = new Map<string, { mean: Tensor; variance: Tensor }>();
    const [height, width] = unet.sample_size ?? [64, 64];
    const ctx = {
      graph,
      parameters,
      tap: (path: string, value: Tensor) => void taps.set(path, value),
      wantsTap: keep,
      ...(attentionAt !== undefined && {
        groupNorm: (x: Tensor, gamma: Tensor, beta: Tensor, o: { groups: number; eps: number }) => {
          if (graph.path === attentionAt) norms.set(graph.path, groupStatistics(x, o.groups));
          return groupNorm(x, gamma, beta, o);
        },
      }),
    };
    const inputs = unet2dInputs(ctx, unet, [1, height, width]);
    unet2d(ctx, unet, inputs);
    /** Softmax of the scores that the layer `attentionAt` weighs its values by; its kernel never holds them. */
    const attention = (): { maps: Tensor } | undefined => {
      const block = attentionAt && /(.*attentions\.\d+)(\.|$)/.exec(attentionAt)?.[1];
      const [q, k] = block ? [taps.get(`${block}.to_q`), taps.get(`${block}.to_k`)] : [];
      if (!q || !k) return undefined;
      const [, tokens, channels] = q.shape as [number, number, number];
      const dim = unet.attention_head_dim ?? channels;
      const heads = channels / dim;
      const byHead = (x: Tensor): Tensor => reshape(transpose(reshape(x, [1, tokens, heads, dim]), [0, 2, 1, 3]), [heads, tokens, dim]);
      return { maps: softmax(matmul(scale(byHead(q), 1 / Math.sqrt(dim)), byHead(k), { transposeB: true })) };
    };
    return { graph, parameters, taps, norms, attention, inputs };
  }

  /** Puts the sampler's state where denoising step `step` finds it. */
  private async prepare(step: number): Promise<void> {
    const sampler = this.opened();
    const leaf = (name: string): Tensor => {
      for (const { operands } of sampler.stepProgram.steps) for (const t of Object.values(operands)) if (!('temp' in t) && t.name === name) return t;
      throw new BruitError('input', `the program has no ${name}`);
    };
    sampler.stepProgram.write(leaf('sampler.counter'), Uint32Array.of(step));
    sampler.stepProgram.write(leaf('sampler.sample'), await this.sampleAt(step));
  }

  private async sampleAt(step: number): Promise<Float32Array> {
    const { a } = this.trajectory!.picture(step, 'sample');
    return new Float32Array(await this.engine.readBuffer(a, numel(this.trajectory!.shape) * 4));
  }

  private async show(canvas: string, program: Program, t: Bindable): Promise<Shown> {
    const view = program.view(t);
    const bytes = numel(t.shape) * dtypeBytes[t.dtype];
    const raw = await this.engine.readBuffer(view, bytes);
    const data = t.dtype === 'f32' ? new Float32Array(raw) : Float32Array.from(t.dtype === 'i32' ? new Int32Array(raw) : new Uint32Array(raw));
    const statistics = statisticsOf(data, t.shape);
    const spread = 3 * statistics.std || 1;
    const range = [statistics.mean - spread, statistics.mean + spread] as const;
    const { maps, ...layout } = mapsOf(t.shape, this.trajectory!.shape);
    const count = Math.min(maps, mostMaps);
    const size = t.dtype === 'f32' ? this.views.draw(canvas, { a: view, channels: 1, range, ...layout, count }) : undefined;
    return { statistics, size, drawn: [count, maps] };
  }

  private lives(): { lives: Life[]; slots: number[] } {
    const { stepProgram } = this.opened();
    const buffers = new Map<GPUBuffer, number>();
    const lives = new Map<Bindable, { first: number; last: number; slot: number }>();
    stepProgram.steps.forEach(({ operands }, i) => {
      for (const t of Object.values(operands)) {
        const root = rootOf(t);
        if (!('temp' in root) && root.kind !== 'value') continue;
        const { buffer } = stepProgram.view(root);
        if (!/slot/.test(buffer.label)) continue; // the caller's memory
        if (!buffers.has(buffer)) buffers.set(buffer, buffers.size);
        const known = lives.get(root);
        if (known) known.last = i;
        else lives.set(root, { first: i, last: i, slot: buffers.get(buffer)! });
      }
    });
    return {
      lives: [...lives].map(([t, life]) => ({ ...life, bytes: numel(t.shape) * dtypeBytes[t.dtype], label: 'temp' in t ? t.label : `${t.node!.op.name} ${t.node!.path}` })),
      slots: [...buffers.keys()].map((b) => b.size),
    };
  }
}

const rootOf = (t: Bindable): Bindable => {
  let root = t;
  while (!('temp' in root) && root.node?.op.view) root = root.node.inputs[0]!;
  return root;
};

const isWritten = (step: Step, name: string): boolean => step.info.bindings.get(name)?.type === 'storage';

/** What a dispatch writes; of several, the largest (norms write their statistics, too). */
function resultOf(step: Step): Bindable {
  const written = Object.entries(step.operands).filter(([name]) => isWritten(step, name)).map(([, t]) => t);
  return [...written].sort((a, b) => numel(b.shape) - numel(a.shape))[0] ?? step.node.outputs[0]!;
}

function groupStatistics(x: Tensor, groups: number): { mean: Tensor; variance: Tensor } {
  const channels = x.shape.at(-1)!;
  const grouped = reshape(x, [1, numel(x.shape) / channels, groups, channels / groups]);
  const m = mean(grouped, [1, 3]);
  const centred = sub(grouped, m);
  return { mean: m, variance: mean(square(centred), [1, 3]) };
}

/** How a tensor is cut into maps: [N,H,W,C] by channel, [N,T,C] with a square T likewise, else rows and columns. Samples stand channel first. */
function mapsOf(shape: Shape, sample: Shape): { maps: number; height: number; width: number; strides: readonly [number, number, number, number] } {
  if (shape.length === 4 && shape.every((d, i) => d === sample[i])) {
    const [, c, h, w] = shape as [number, number, number, number];
    return { maps: c, height: h, width: w, strides: [h * w, 0, w, 1] };
  }
  if (shape.length === 4 && shape[1]! > 1) {
    const [, h, w, c] = shape as [number, number, number, number];
    return { maps: c, height: h, width: w, strides: [1, 0, w * c, c] };
  }
  const c = shape.at(-1) ?? 1;
  const rows = numel(shape) / c;
  const side = Math.sqrt(rows);
  if (shape.length >= 3 && Number.isInteger(side) && side > 1) return { maps: c, height: side, width: side, strides: [1, 0, side * c, c] };
  return { maps: 1, height: rows, width: c, strides: [0, 0, c, 1] };
}

function statisticsOf(data: Float32Array, shape: Shape): Statistics {
  let [min, max, sum, squares] = [Infinity, -Infinity, 0, 0];
  for (const v of data) {
    min = Math.min(min, v);
    max = Math.max(max, v);
    sum += v;
    squares += v * v;
  }
  const average = sum / data.length;
  const std = Math.sqrt(Math.max(squares / data.length - average ** 2, 0));
  const bins = 48;
  const counts = new Array<number>(bins).fill(0);
  const span = max - min || 1;
  for (const v of data) counts[Math.min(bins - 1, Math.floor(((v - min) / span) * bins))]! += 1;
  return { shape, min, max, mean: average, std, histogram: { from: min, to: max, counts } };
}
