/**
 * Running a {@link SamplerProgram} on the GPU: one graph is one step (input, model, guidance, noise, update), compiled once and replayed for
 * each row of the coefficient table. Which row it is, the GPU counts itself, so a run reads nothing back and creates nothing.
 */
import type { Engine } from '../engine/device';
import { BruitError, check } from '../engine/errors';
import { Graph, type HostData, type Tensor } from '../engine/graph';
import { concat, slice } from '../engine/ops/copy';
import { embedding } from '../engine/ops/embedding';
import { guidance as guide } from '../engine/ops/guidance';
import { add, div, mul, scale, sqrt, square, sub } from '../engine/ops/pointwise';
import { randomNormal } from '../engine/ops/random';
import { samplerInput, samplerStep, type SamplerState, type SamplerStepOptions } from '../engine/ops/sampler_step';
import { reshape } from '../engine/ops/reshape';
import { copyInto } from '../engine/ops/state';
import { mean } from '../engine/ops/sum';
import { compile, tensorUsage, type BufferView, type CompileOptions, type Program } from '../engine/program';
import { RngStream, seedKey } from '../engine/rng';
import { numel, showShape } from '../engine/shape';
import { packProgram, STEP_STRIDE, type SamplerProgram } from './program';

/** What may change from run to run without compiling anew. */
export interface SamplerInputs {
  /** Key of all random numbers, a whole number from 0 to 2^53 − 1; 0 by default. */
  readonly seed?: number;
  /** Number of the batch's first sample in the whole job: sample i is drawn from (seed, sampleOffset + i) whatever batch it is in. */
  readonly sampleOffset?: number;
  /** One label per image: class numbers (Int32Array), or D numbers each (Float32Array of N·D). Type and size are fixed by the first ones. */
  readonly labels?: Int32Array | Float32Array;
  /** Standard normal start noise [N, C, H, W] as in diffusers, which `start` makes the start sample of; `null` draws it from the seed again. */
  readonly latents?: Float32Array | null;
  /** The recorded draws of a run [noiseDraws, N, C, H, W], where the sampler was made for them. */
  readonly noise?: Float32Array;
  readonly guidanceScale?: number;
}

/** What the graph of a step knows beside its inputs. */
export interface StepContext {
  /** The start noise of the run: standard normal, [N, C, H, W]. */
  readonly noise: Tensor;
  /** A row of numbers for each step of the program, looked up on the GPU: f32 [1, width]. */
  perStep(name: string, rows: readonly (readonly number[])[]): Tensor;
  /** Keeps a value of each step for {@link SamplerPreview.recorded}; does nothing unless the sampler records. */
  record(name: string, value: Tensor): void;
  /** The current step's row of `timeValues`' value of that path, where there is one: f32 [1 or the batch, width]. Else what `build` adds to the graph. */
  readonly hoist: (value: { readonly path: string }, build: () => Tensor) => Tensor;
}

export interface GpuSamplerOptions extends Omit<SamplerInputs, 'guidanceScale'> {
  readonly program: SamplerProgram;
  /** [N, C, H, W] of the sample. */
  readonly shape: readonly [number, number, number, number];
  /**
   * Adds the model to the graph: `x` f32 [N, C, H, W] is already scaled, `timestep` is f32 [N], `labels` is i32 or f32 [N] (or f32 [N, D]);
   * N is twice as large under guidance. Returns [N, C, H, W], or [N, 2C, H, W] with a variance half.
   */
  readonly model: (graph: Graph, x: Tensor, timestep: Tensor, labels: Tensor | undefined, step: StepContext) => Tensor;
  /**
   * Adds to a graph of its own what the model computes from time steps and labels alone, each value [R, width] for `timestep` f32 [R] and `labels`
   * [R] or [R, D], by the path under which `model` asks {@link StepContext.hoist} for it. A run computes the values of all steps before its first, and a
   * step looks its own up in one dispatch. Values that would take more than 32 MiB in all stay in the loop.
   */
  readonly timeValues?: (graph: Graph, timestep: Tensor, labels: Tensor | undefined) => ReadonlyMap<string, Tensor>;
  /** Adds the start sample to a graph of its own, given standard normal noise [N, C, H, W]; noise · `initNoiseSigma` by default. */
  readonly start?: (noise: Tensor) => Tensor;
  /** Replaces the sample [N, C, H, W] after each step (inpainting: what is kept of the image). */
  readonly after?: (sample: Tensor, step: StepContext) => Tensor;
  /** Memory of parameters that `model`, `timeValues`, `start` and `after` have made; asked for afterwards. */
  readonly bindings?: () => ReadonlyMap<Tensor, BufferView>;
  /**
   * Classifier-free guidance: u + scale · (c − u). The model sees a doubled batch, u's half first: labels are `nullLabel` there, and where
   * the sampler has no labels the model knows by itself what to compare. `rescale` brings the result's standard deviation so far back to that of
   * c (Lin et al. 2023, section 3.4).
   */
  readonly guidance?: { readonly scale: number; readonly nullLabel?: number; readonly rescale?: number };
  /** Keep the predicted x0 of each step, so that runs may show previews. */
  readonly preview?: boolean;
  /** A `NanProbe` for the steps' program; ask it between runs, or after each step of one's own. */
  readonly probe?: CompileOptions['probe'];
  /** Previews also deliver what steps were given and computed, under the names of {@link SamplerPreview.recorded}. */
  readonly record?: boolean;
}

/** The state after step `step` (from 0) of `total`. Arrays are [N, C, H, W] and the receiver's own. */
export interface SamplerPreview {
  readonly step: number;
  readonly total: number;
  /** Of `sample` and `x0`. */
  readonly shape: readonly [number, number, number, number];
  /** x_t, as the next step will read it. */
  readonly sample: Float32Array;
  /** The predicted x0, bounded as the program bounds it. */
  readonly x0: Float32Array;
  /**
   * Only of samplers made with `record`: `step_sample` (what the step was given), `model_output` (after guidance), `latents` (what the
   * scheduler returned, before `after`), and what the model recorded.
   */
  readonly recorded: Readonly<Record<string, Float32Array>>;
}

export interface SamplerRunOptions {
  /** Looked at between steps; at most a tenth of a second's steps (and at least two) are queued ahead. */
  readonly signal?: AbortSignal;
  /** Called when the GPU has done a step. */
  readonly onProgress?: (done: number, total: number) => void;
  /**
   * Called when the commands of `step` steps are queued, first with 0 (the start sample), up to `total`: what the caller submits then, a copy or a
   * picture, sees {@link GpuSampler.sampleView} and {@link GpuSampler.x0View} as that step left them. Nothing is read back.
   */
  readonly onQueued?: (step: number, total: number) => void;
  /** Called some time after the step, in order; the loop goes on meanwhile. */
  readonly onPreview?: (preview: SamplerPreview) => void;
  /** A preview after every so many steps and after the last; 1 by default. */
  readonly previewEvery?: number;
}

/** Compiles a sampler for one batch shape. Pipelines are shared with everything else on the engine. */
export async function createGpuSampler(engine: Engine, options: GpuSamplerOptions): Promise<GpuSampler> {
  const { program, shape, guidance, labels } = options;
  const [n, channels] = shape;
  const copies = guidance ? 2 : 1;
  check(program.steps.length > 0, 'config', () => `${program.className}: a program without steps`);
  check(guidance?.nullLabel === undefined || labels, 'input', () => 'guidance needs labels: it compares predictions with and without them');
  check(!guidance || !labels || guidance.nullLabel !== undefined, 'input', () => 'guidance needs the label that stands for none (nullLabel)');

  const graph = new Graph();
  const state: SamplerState = {
    table: graph.constant('sampler.table', [program.steps.length, STEP_STRIDE], packProgram(program)),
    counter: graph.state('sampler.counter', [1], 'u32'),
    sample: graph.state('sampler.sample', shape),
    slots: graph.state('sampler.slots', program.slots ? [program.slots, numel(shape)] : [1]),
  };
  const seed = graph.input('seed', [2], 'u32');
  const samples = graph.input('samples', [n], 'u32');
  const guidanceScale = graph.input('guidance_scale', [1]);
  let labelInput: Tensor | undefined;
  if (labels) {
    const width = labels.length / n;
    check(Number.isInteger(width) && width >= 1, 'input', () => `${labels.length} labels for ${n} images`);
    const integers = labels instanceof Int32Array;
    check(!integers || width === 1, 'input', () => `class numbers are one per image: got ${labels.length} for ${n} images`);
    labelInput = graph.input('labels', width === 1 ? [copies * n] : [copies * n, width], integers ? 'i32' : 'f32');
  }

  const { input, timestep, draw } = samplerInput(state, copies);
  const time = timeTable(engine, graph, options, labelInput);
  const table = time && graph.parameter('sampler.time_table', time.table.shape);
  // Written at the start of each step, read through the values, which are parts of it.
  const row = table && embedding(table, state.counter);
  const recorded = new Map<string, Tensor>();
  const step: StepContext = {
    noise: graph.parameter('sampler.noise', shape),
    perStep(name, rows) {
      const width = rows[0]!.length;
      check(rows.length === program.steps.length && rows.every((row) => row.length === width), 'input', () => `${name}: ${rows.length} rows for the ${program.steps.length} steps of ${program.className}`);
      // Draws count from 1, so row 0 is never read.
      return embedding(graph.constant(name, [rows.length + 1, width], Float32Array.from([...new Array<number>(width).fill(0), ...rows.flat()])), draw);
    },
    // Apart from what the value is fused into, or overwritten by.
    record: (name, value) => void (options.record && recorded.set(name, scale(value, 1))),
    hoist: ({ path }, compute) => time?.values.get(path)?.value ?? compute(),
  };
  step.record('step_sample', state.sample);
  let output = options.model(graph, input, timestep, labelInput, step);
  if (guidance) {
    const guided = guide(output, guidanceScale, channels);
    output = guidance.rescale ? rescale(guided, slice(output, 0, n, n), guidance.rescale) : guided;
  }
  step.record('model_output', output);
  let noise: SamplerStepOptions['noise'];
  if (program.noiseDraws > 0) {
    if (options.noise) noise = { kind: 'recorded', tensor: graph.input('noise', [program.noiseDraws, ...shape]) };
    else noise = { kind: 'drawn', tensor: randomNormal({ graph, shape, seed, samples, step: draw, stream: RngStream.noise }) };
  }
  const { varianceHalf, bound } = program;
  const { x0 } = samplerStep(state, { output, varianceHalf, bound, ...(noise && { noise }), predictX0: options.preview === true || options.record === true });
  step.record('latents', state.sample);
  if (options.after) copyInto(state.sample, options.after(state.sample, step));

  const begin = new Graph();
  const beginSeed = begin.input('seed', [2], 'u32');
  const beginSamples = begin.input('samples', [n], 'u32');
  // Step 0 of the random numbers; the steps of the program are 1, 2, ….
  const z = randomNormal({ graph: begin, shape, seed: beginSeed, samples: beginSamples, step: begin.constant('step', [1], Uint32Array.of(0)), stream: RngStream.noise });
  const start = new Graph();
  const startNoise = start.parameter('sampler.noise', shape);
  const first = options.start ? options.start(startNoise) : scale(startNoise, program.initNoiseSigma);

  const own: GPUBuffer[] = [];
  const memory = (name: string, bytes: number): BufferView => {
    own.push(engine.createBuffer(name, Math.ceil(bytes / 16) * 16, tensorUsage));
    return { buffer: own[own.length - 1]!, offset: 0 };
  };
  const noiseView = memory('sampler.noise', state.sample.bytes);
  const weights = options.bindings?.() ?? new Map<Tensor, BufferView>();
  const programs: Program[] = [];
  const build = async (from: Graph, label: string, outputs: readonly Tensor[], bindings: readonly (readonly [Tensor, BufferView])[]): Promise<Program> => {
    const given = [...weights].filter(([t]) => t.graph === from);
    const compiled = await compile(engine, from, { outputs, bindings: new Map([...given, ...bindings]), label, probe: from === graph ? options.probe : undefined });
    programs.push(compiled);
    return compiled;
  };
  const destroy = (): void => {
    for (const each of programs) each.destroy();
    for (const buffer of own) engine.destroyBuffer(buffer);
  };
  let sampler: GpuSampler | undefined;
  try {
    const stepBindings: [Tensor, BufferView][] = [[step.noise, noiseView]];
    let timeProgram: Program | undefined;
    if (time) {
      const rowView = memory('sampler.time', row!.bytes);
      timeProgram = await build(time.table.graph, 'sampler.time', [time.table], []);
      stepBindings.push([table!, timeProgram.view(time.table)], [row!, rowView]);
      for (const { value, offset } of time.values.values()) stepBindings.push([value, { ...rowView, offset }]);
    }
    const stepProgram = await build(graph, 'sampler', [...(x0 ? [x0] : []), ...recorded.values()], stepBindings);
    const leaves: Leaves = { state, seed, samples, guidanceScale, labels: labelInput, noise: noise?.kind === 'recorded' ? noise.tensor : undefined, x0, recorded, begin: { seed: beginSeed, samples: beginSamples }, startNoise, timeLabels: time?.labels };
    const startPrograms = {
      draw: await build(begin, 'sampler.draw', [], [[z, noiseView]]),
      start: await build(start, 'sampler.start', [], [[first, stepProgram.view(state.sample)], [startNoise, noiseView]]),
      time: timeProgram,
    };
    sampler = new GpuSampler(engine, options, stepProgram, startPrograms, leaves, destroy);
    const { seed: key = 0, sampleOffset = 0, latents = null, noise: given } = options;
    sampler.set({ seed: key, sampleOffset, latents, ...(labels && { labels }), ...(given && { noise: given }), ...(guidance && { guidanceScale: guidance.scale }) });
    return sampler;
  } catch (e) {
    if (sampler) sampler.destroy();
    else destroy();
    throw e;
  }
}

/** What the model computes from time steps and labels alone. */
interface TimeTable {
  /** The values of each step, one after the other: [steps, columns], in a graph of its own. */
  readonly table: Tensor;
  /** Labels of every step's rows, in that graph. */
  readonly labels: Tensor | undefined;
  /** What the step's graph reads: a part of the current row that begins at byte `offset`. */
  readonly values: ReadonlyMap<string, { readonly value: Tensor; readonly offset: number }>;
}

/** Beyond this, a table costs more than it saves: products of so many rows do not wait for weights. */
const maxTimeTable = 2 ** 25;

function timeTable({ profile: { limits } }: Engine, graph: Graph, { timeValues, program: { steps } }: GpuSamplerOptions, stepLabels: Tensor | undefined): TimeTable | undefined {
  if (!timeValues) return undefined;
  const own = new Graph();
  const batch = stepLabels?.shape[0] ?? 1;
  const rows = steps.length * batch;
  const labels = stepLabels && own.input('labels', [rows, ...stepLabels.shape.slice(1)], stepLabels.dtype);
  const timestep = own.constant('timestep', [rows], Float32Array.from({ length: rows }, (_, i) => steps[Math.floor(i / batch)]!.timestep));
  const parts: Tensor[] = [];
  let offset = 0;
  const append = (part: Tensor): void => {
    parts.push(part);
    offset += part.bytes / steps.length;
  };
  const values: [string, { value: Tensor; offset: number }][] = [];
  for (const [path, all] of timeValues(own, timestep, labels)) {
    const part = reshape(all, [steps.length, -1]);
    values.push([path, { value: graph.parameter(path, [batch, part.shape[1]! / batch]), offset }]);
    append(part);
    const gap = (-offset & (limits.minStorageBufferOffsetAlignment - 1)) / 4;
    if (gap) append(own.constant('gap', [steps.length, gap], new Float32Array(steps.length * gap)));
  }
  return parts.length && steps.length * offset <= maxTimeTable ? { table: concat(parts, 1), labels, values: new Map(values) } : undefined;
}

/** phi of the way from `guided` to the same with the standard deviation of `positive`, image by image. [N, C, H, W] both. */
function rescale(guided: Tensor, positive: Tensor, phi: number): Tensor {
  const axes = [1, 2, 3];
  const variance = (x: Tensor): Tensor => mean(square(sub(x, mean(x, axes))), axes);
  return add(scale(mul(guided, sqrt(div(variance(positive), variance(guided)))), phi), scale(guided, 1 - phi));
}

interface Leaves {
  readonly state: SamplerState;
  readonly seed: Tensor;
  readonly samples: Tensor;
  readonly guidanceScale: Tensor;
  readonly labels: Tensor | undefined;
  readonly noise: Tensor | undefined;
  readonly x0: Tensor | undefined;
  readonly recorded: ReadonlyMap<string, Tensor>;
  /** Inputs of the program that draws the start noise. */
  readonly begin: { readonly seed: Tensor; readonly samples: Tensor };
  /** The start noise, in the program that makes the start sample of it. */
  readonly startNoise: Tensor;
  /** Labels of every step's rows, in the program that computes the values of all steps. */
  readonly timeLabels: Tensor | undefined;
}

/** A compiled sampler: {@link run} it as often as wanted, with other {@link SamplerInputs} or the same. Made by {@link createGpuSampler}. */
export class GpuSampler {
  private latents: Float32Array | null = null;
  private running = false;
  private readonly previews: PreviewRing | undefined;

  constructor(
    private readonly engine: Engine,
    private readonly options: GpuSamplerOptions,
    /** One step, to be profiled; running it by itself moves the sampler on. */
    readonly stepProgram: Program,
    private readonly startPrograms: { readonly draw: Program; readonly start: Program; readonly time: Program | undefined },
    private readonly leaves: Leaves,
    private readonly destroyPrograms: () => void,
  ) {
    const { x0, state, recorded } = leaves;
    if (x0) this.previews = new PreviewRing(engine, [x0, state.sample, ...recorded.values()].map((t) => ({ ...stepProgram.view(t), bytes: t.bytes })));
  }

  /** The table of coefficients that it executes. */
  get program(): SamplerProgram {
    return this.options.program;
  }

  /** Changes inputs of later runs; those not named stay. */
  set(inputs: SamplerInputs): void {
    this.assertIdle('set');
    const { shape, program, guidance } = this.options;
    const { leaves, stepProgram: step } = this;
    const { draw } = this.startPrograms;
    const { seed, sampleOffset, labels, latents, noise, guidanceScale } = inputs;
    const count = numel(shape);
    if (seed !== undefined) {
      const key = Uint32Array.from(seedKey(seed));
      step.write(leaves.seed, key);
      draw.write(leaves.begin.seed, key);
    }
    if (sampleOffset !== undefined) {
      check(Number.isInteger(sampleOffset) && sampleOffset >= 0 && sampleOffset + shape[0] <= 2 ** 32, 'input', () => `sampleOffset ${sampleOffset} is no whole number from 0 to 2^32 − ${shape[0]}`);
      const samples = Uint32Array.from({ length: shape[0] }, (_, i) => sampleOffset + i);
      step.write(leaves.samples, samples);
      draw.write(leaves.begin.samples, samples);
    }
    if (labels) {
      const t = leaves.labels;
      check(t, 'input', () => 'labels were given, but the sampler was made without');
      const wanted = numel(t.shape) / (guidance ? 2 : 1);
      check(labels.length === wanted && labels instanceof Int32Array === (t.dtype === 'i32'), 'input', () => `labels: expected ${wanted} numbers as ${t.dtype === 'i32' ? 'Int32Array' : 'Float32Array'}, got ${labels.length} as ${labels.constructor.name}`);
      const all = labels instanceof Int32Array ? new Int32Array(numel(t.shape)) : new Float32Array(numel(t.shape));
      if (guidance) all.fill(guidance.nullLabel!, 0, wanted);
      all.set(labels, all.length - wanted);
      step.write(t, all);
      const { timeLabels } = leaves;
      if (timeLabels) this.startPrograms.time!.write(timeLabels, (all.constructor as typeof Int32Array).from({ length: numel(timeLabels.shape) }, (_, i) => all[i % all.length]!));
    }
    if (latents) check(latents.length === count, 'input', () => `latents: ${latents.length} numbers do not fill ${showShape(shape)}`);
    if (latents !== undefined) this.latents = latents;
    if (noise && program.noiseDraws > 0) {
      const t = leaves.noise;
      check(t, 'input', () => 'recorded noise was given, but the sampler was made to draw its own');
      check(noise.length === numel(t.shape), 'input', () => `noise: ${noise.length} numbers do not fill ${showShape(t.shape)}: ${program.className} takes ${program.noiseDraws} draws`);
      step.write(t, noise);
    }
    if (guidanceScale !== undefined) {
      check(guidance, 'input', () => 'guidanceScale was given, but the sampler was made without guidance');
      check(Number.isFinite(guidanceScale), 'input', () => `guidanceScale ${guidanceScale} is not a finite number`);
      step.write(leaves.guidanceScale, Float32Array.of(guidanceScale));
    }
  }

  /** Writes input leaves that `model`, `start` and `after` have made, by their names. */
  writeInputs(inputs: Readonly<Record<string, HostData>>): void {
    this.assertIdle('writeInputs');
    const { state, startNoise } = this.leaves;
    for (const [program, { leaves }] of [[this.stepProgram, state.sample.graph], [this.startPrograms.start, startNoise.graph]] as const) {
      for (const leaf of leaves) if (leaf.kind === 'input' && inputs[leaf.name]) program.write(leaf, inputs[leaf.name]!);
    }
  }

  /**
   * Samples from the start. Resolves when the GPU has done the last step.
   * @throws BruitError `aborted` if the signal asked for it (the sampler may be run again), `device` if the device was lost.
   */
  async run(options: SamplerRunOptions = {}): Promise<void> {
    this.assertIdle('run');
    const { signal, onProgress, onQueued, onPreview, previewEvery = 1 } = options;
    const total = this.options.program.steps.length;
    const { previews } = this;
    check(!onPreview || previews, 'input', () => 'onPreview needs a sampler made with preview: true');
    check(Number.isInteger(previewEvery) && previewEvery >= 1, 'input', () => `previewEvery ${previewEvery} must be a whole number of at least 1`);
    const proceed = (done: number) => {
      if (signal?.aborted) throw new BruitError('aborted', `sampling was aborted after ${done} of ${total} steps`, { cause: signal.reason });
    };

    proceed(0);
    const encoder = this.engine.device.createCommandEncoder();
    this.encodeStart(encoder);
    this.running = true;
    let ended = false;
    let done = 0;
    const queued: Promise<void>[] = [];
    try {
      this.engine.device.queue.submit([encoder.finish()]);
      onQueued?.(0, total);
      const { pace } = this.engine;
      const { work } = this.stepProgram;
      for (let step = 0; step < total; step++) {
        // Enough to keep the GPU busy while the host is told, few enough that an abort is felt soon.
        while (queued.length >= Math.min(Math.max(pace.budget / work / 2, 2), 16)) await queued.shift();
        proceed(done);
        this.stepProgram.run();
        onQueued?.(step + 1, total);
        if (onPreview && ((step + 1) % previewEvery === 0 || step + 1 === total)) {
          await previews!.capture(([x0, sample, ...rest]) => {
            const recorded = Object.fromEntries([...this.leaves.recorded.keys()].map((name, i) => [name, rest[i]!]));
            if (!ended && !signal?.aborted) onPreview({ step, total, shape: this.options.shape, x0: x0!, sample: sample!, recorded });
          });
        }
        queued.push(
          this.stepProgram.done().then(() => {
            done = step + 1;
            if (!ended && !signal?.aborted) onProgress?.(done, total);
          }),
        );
      }
      await Promise.all(queued);
      await previews?.settled();
      proceed(done);
    } finally {
      ended = true;
      // Nothing of this run may touch the buffers or callbacks of the next.
      await Promise.allSettled([...queued, previews?.settled()]);
      previews?.reset();
      this.running = false;
    }
  }

  /**
   * Records the start of a run into the caller's command encoder: counter and slots to zero, the sample to its noise. Then record
   * {@link encodeStep} {@link stepCount} times, in this encoder or later ones.
   */
  encodeStart(encoder: GPUCommandEncoder): void {
    this.assertIdle('run');
    const { counter, slots } = this.leaves.state;
    // A run that ended in infinities must not leave them to the next: 0 times infinity is not 0.
    for (const state of [counter, slots]) {
      const { buffer, offset } = this.stepProgram.view(state);
      encoder.clearBuffer(buffer, offset, state.bytes);
    }
    const { draw, start, time } = this.startPrograms;
    // For each run anew: weights may have changed (training).
    time?.encode(encoder);
    if (this.latents) start.write(this.leaves.startNoise, this.latents);
    else draw.encode(encoder);
    start.encode(encoder);
  }

  /** Records the next step into the caller's command encoder. */
  encodeStep(encoder: GPUCommandEncoder): void {
    this.assertIdle('run');
    this.stepProgram.encode(encoder);
  }

  /** [N, C, H, W] of the sample. */
  get sampleShape(): GpuSamplerOptions['shape'] {
    return this.options.shape;
  }

  /** Steps of a run. */
  get stepCount(): number {
    return this.options.program.steps.length;
  }

  /** The sample of the last run, [N, C, H, W]. */
  read(): Promise<Float32Array> {
    return this.stepProgram.read(this.leaves.state.sample);
  }

  /** The sample in GPU memory: f32 [N, C, H, W]. */
  get sampleView(): BufferView {
    return this.stepProgram.view(this.leaves.state.sample);
  }

  /** The predicted x0 of the last step in GPU memory, f32 [N, C, H, W], where the sampler was made with `preview`. */
  get x0View(): BufferView | undefined {
    return this.leaves.x0 && this.stepProgram.view(this.leaves.x0);
  }

  /** Frees what the sampler made; weights are the caller's. A run in progress fails. */
  destroy(): void {
    this.destroyPrograms();
    this.previews?.destroy();
  }

  private assertIdle(what: string): void {
    this.engine.assertAlive();
    check(!this.running, 'input', () => `${what}: the sampler is running; wait for run() to settle`);
  }
}

const MapMode = { READ: 1 } as const;
const BufferUsage = { MAP_READ: 1, COPY_DST: 8 } as const;

/** Staging buffers for previews, used in turn: a copy is queued behind the step and mapped when the GPU gets there. */
class PreviewRing {
  private readonly slots: { readonly buffer: GPUBuffer; pending: Promise<void> }[];
  private readonly places: readonly number[];
  private next = 0;

  constructor(
    private readonly engine: Engine,
    private readonly sources: readonly (BufferView & { readonly bytes: number })[],
  ) {
    // Copies begin at multiples of 4 bytes, mapped ranges at multiples of 8.
    let total = 0;
    this.places = sources.map(({ bytes }) => {
      const at = total;
      total += Math.ceil(bytes / 8) * 8;
      return at;
    });
    this.slots = Array.from({ length: 3 }, (_, i) => ({
      buffer: engine.createBuffer(`sampler.preview${i}`, total, BufferUsage.MAP_READ | BufferUsage.COPY_DST),
      pending: Promise.resolve(),
    }));
  }

  /** Queues a copy of the sources and returns; `deliver` gets it later. Waits only while all buffers are under way. */
  async capture(deliver: (data: Float32Array[]) => void): Promise<void> {
    const slot = this.slots[this.next++ % this.slots.length]!;
    await slot.pending;
    const { device } = this.engine;
    const { places, sources } = this;
    const encoder = device.createCommandEncoder();
    sources.forEach(({ buffer, offset, bytes }, i) => encoder.copyBufferToBuffer(buffer, offset, slot.buffer, places[i]!, bytes));
    device.queue.submit([encoder.finish()]);
    slot.pending = this.engine.settle(slot.buffer.mapAsync(MapMode.READ)).then(() => {
      const data = sources.map(({ bytes }, i) => new Float32Array(slot.buffer.getMappedRange(places[i]!, bytes).slice(0)));
      slot.buffer.unmap();
      deliver(data);
    });
    // It is awaited later; until then a failure must not count as unhandled.
    slot.pending.catch(() => undefined);
  }

  /** Resolves when all copies were delivered; rejects as the first that failed. */
  async settled(): Promise<void> {
    await Promise.all(this.slots.map((s) => s.pending));
  }

  /** Forgets failures of an earlier run. */
  reset(): void {
    for (const s of this.slots) s.pending = Promise.resolve();
  }

  destroy(): void {
    for (const s of this.slots) this.engine.destroyBuffer(s.buffer);
  }
}
