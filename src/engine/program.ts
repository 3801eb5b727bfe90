/**
 * Compiling a graph into a recorded GPU program, and replaying it.
 *
 * `compile` runs the passes, lowers nodes to dispatches, plans memory, and makes every buffer, bind group and pipeline. `run` then only
 * encodes the flat dispatch list: it creates no GPU resource, writes nothing and reads nothing back.
 */
import type { BufferView } from './buffer_view';
import type { AdapterProfile, Engine } from './device';
import { BruitError } from './errors';
import type { Graph, HostData, Tensor } from './graph';
import { partView } from './group_products';
import type { Bindable, Cost } from './op';
import { scale } from './ops/pointwise';
import { workOf } from './pace';
import { readsOf, type PlannedNode } from './passes';
import type { MemoryPlan } from './plan';
import { bytesOf, padded, planGraph, type Lowered, type PlannedGraph, type Probe } from './planned_graph';
import { emitEpilogue } from './pointwise_codegen';
import { highestBinding, packParams, reflect, specialise, type EntryInfo } from './shader';
import { numel, showShape } from './shape';
import { readStored } from './stored';
import { tuningKey } from './tuning_key';

export type { BufferView } from './buffer_view';

export interface CompileOptions {
  /** Values to keep: readable after a run, never overwritten within one. */
  readonly outputs: readonly Tensor[];
  /** Memory of the caller's for leaves (parameters must be here) and for values that are to be written there. */
  readonly bindings?: ReadonlyMap<Tensor, BufferView>;
  /** Forces a kernel variant by op name. */
  readonly variants?: Readonly<Record<string, string>>;
  /** Off for tests that look at single ops. */
  readonly fuse?: boolean;
  /** Fills activation memory with NaN first, so that a kernel that reads what nobody wrote shows (tests). */
  readonly poison?: boolean;
  /** Looks at all values as they are computed: a `NanProbe`. */
  readonly probe?: Probe | undefined;
  readonly label?: string;
}

/** One dispatch of the recorded list. */
export interface Step {
  readonly label: string;
  readonly node: PlannedNode;
  readonly info: EntryInfo;
  readonly pipeline: GPUComputePipeline;
  readonly bindGroup: GPUBindGroup;
  /** Dynamic offsets of the bind group: which slice this is of a dispatch that may be cut. */
  readonly offsets: readonly number[];
  readonly workgroups: readonly [number, number];
  readonly cost: Cost;
  /** What is bound to the kernel's variables, by their names. */
  readonly operands: Readonly<Record<string, Bindable>>;
  /** Fields of its uniform `params`. */
  readonly params: Readonly<Record<string, number>>;
}

const BufferUsage = { MAP_READ: 1, COPY_SRC: 4, COPY_DST: 8, UNIFORM: 64, STORAGE: 128 } as const;
/** Usage of every tensor buffer: kernels, uploads and read-backs. */
export const tensorUsage = BufferUsage.STORAGE | BufferUsage.COPY_SRC | BufferUsage.COPY_DST;

/** Builds the recorded program of `graph`. */
export async function compile(engine: Engine, graph: Graph, options: CompileOptions): Promise<Program> {
  engine.assertAlive();
  const bindings = new Map(options.bindings);
  // A value bound to the caller's memory is written there by its own kernel. A view has none: bind what it is a view of, or copy
  // where that already lives elsewhere.
  for (const [t, view] of [...bindings]) {
    if (!t.node?.op.view) continue;
    bindings.delete(t);
    let root = t;
    while (root.node?.op.view) root = root.node.inputs[0]!;
    const free = root.kind === 'value' && !bindings.has(root) && !options.outputs.includes(root);
    bindings.set(free ? root : scale(t, 1), view);
  }
  const outputs = new Set<Tensor>([...options.outputs, ...[...bindings.keys()].filter((t) => t.kind === 'value')]);
  const planned = planGraph(graph, outputs, {
    nodes: readStored(graph, bindings),
    profile: engine.profile,
    variantOf: (node) => options.variants?.[node.op.name] ?? tunedVariant(engine, node),
    bound: bindings,
    ...(options.fuse !== undefined && { fuse: options.fuse }),
    probe: options.probe,
  });
  for (const [joint, first] of planned.grouped?.leaves ?? []) bindings.set(joint, bindings.get(first)!);
  const memory = new ProgramMemory(engine, graph, planned, bindings, options.label ?? 'program');
  try {
    await memory.allocate(options.poison === true);
    const steps = await record(engine, planned.lowered, memory);
    return new Program(engine, memory, steps);
  } catch (e) {
    memory.destroy();
    throw e;
  }
}

/** A stored choice that the op no longer has is none. */
function tunedVariant({ tuning }: Engine, node: PlannedNode): string | undefined {
  const variant = tuning.size && node.op.variants ? tuning.get(tuningKey(node)) : undefined;
  return variant !== undefined && node.op.variants!.includes(variant) ? variant : undefined;
}

/** Where each tensor of a program lives. */
class ProgramMemory {
  private readonly views = new Map<Bindable, BufferView>();
  private readonly owned: GPUBuffer[] = [];
  uniforms: GPUBuffer | undefined;

  constructor(
    private readonly engine: Engine,
    private readonly graph: Graph,
    private readonly planned: PlannedGraph,
    private readonly bindings: ReadonlyMap<Tensor, BufferView>,
    private readonly label: string,
  ) {}

  get plan(): MemoryPlan {
    return this.planned.plan;
  }

  /** What {@link allocate} will take: shared memory of values, and leaves that are not the caller's. */
  get bytes(): number {
    return this.planned.leaves.reduce((n, t) => n + (this.bindings.has(t) ? 0 : padded(t.bytes)), this.plan.plannedBytes);
  }

  async allocate(poison: boolean): Promise<void> {
    const { profile } = this.engine;
    const { maxBufferSize, maxStorageBufferBindingSize } = profile.limits;
    const limit = Math.min(maxBufferSize, maxStorageBufferBindingSize);
    const oversize = [...this.planned.slotOf.keys(), ...this.planned.leaves].find((t) => this.bytesOf(t) > limit);
    if (oversize) throw new BruitError('limit', `${this.label}: ${this.describe(oversize)} takes ${this.bytesOf(oversize)} bytes, this device binds at most ${limit} at once. ${adviceFor(oversize)}`);
    const unbound = this.planned.leaves.find((t) => t.kind === 'parameter' && !this.bindings.has(t));
    if (unbound) throw new BruitError('checkpoint', `${this.label}: parameter '${unbound.name}' ${showShape(unbound.shape)} has no buffer in \`bindings\``);
    await this.engine.withinMemory(() => this.createBuffers(poison), () => `${this.label}: ${this.plan.plannedBytes} bytes of activations`);
  }

  private createBuffers(poison: boolean): void {
    const { device } = this.engine;
    const slots = this.plan.slots.map((bytes, i) => this.create(`${this.label}.slot${i}`, bytes));
    if (poison) slots.forEach((b) => device.queue.writeBuffer(b, 0, new Uint32Array(b.size / 4).fill(0x7fc00000)));
    for (const [t, s] of this.planned.slotOf) this.views.set(t, { buffer: slots[s]!, offset: 0 });
    for (const t of this.planned.leaves) {
      const bound = this.bindings.get(t);
      const view = bound ?? { buffer: this.create(t.name || `leaf${t.id}`, padded(t.bytes)), offset: 0 };
      this.views.set(t, view);
      if (!bound && t.data) device.queue.writeBuffer(view.buffer, 0, t.data as Float32Array<ArrayBuffer>);
    }
    for (const [t, view] of this.bindings) this.views.set(t, view);
  }

  /** Bytes that are bound for a tensor. */
  bytesOf(t: Bindable): number {
    return ('temp' in t ? undefined : this.bindings.get(t)?.packed?.bytes) ?? bytesOf(t);
  }

  private describe(t: Bindable): string {
    const node = 'temp' in t ? this.planned.lowered.find(({ temps }) => temps.includes(t))?.node : t.node;
    return `${'temp' in t ? `workspace '${t.label}' ${showShape(t.shape)}` : t}${node ? ` of ${node.op.name} (${node.path || 'top level'})` : ''}`;
  }

  private create(label: string, size: number): GPUBuffer {
    const buffer = this.engine.createBuffer(label, size, tensorUsage);
    this.owned.push(buffer);
    return buffer;
  }

  createUniforms(data: Uint8Array<ArrayBuffer>): GPUBuffer {
    this.uniforms = this.engine.createBuffer(`${this.label}.params`, data.byteLength, BufferUsage.UNIFORM | BufferUsage.COPY_DST);
    this.owned.push(this.uniforms);
    this.engine.device.queue.writeBuffer(this.uniforms, 0, data);
    return this.uniforms;
  }

  view(t: Bindable): BufferView {
    const view = this.views.get('temp' in t ? t : this.planned.root(t));
    if (!view) throw new BruitError('input', `${this.label}: ${'temp' in t ? t.label : t} is not in this program; list it in \`outputs\` to keep it`);
    return 'temp' in t ? view : partView(view, this.planned.grouped, t);
  }

  has(t: Tensor): boolean {
    return this.views.has(this.planned.root(t)) && t.graph === this.graph;
  }

  destroy(): void {
    for (const b of this.owned) this.engine.destroyBuffer(b);
    this.owned.length = 0;
  }
}

const adviceFor = (t: Bindable): string =>
  !('temp' in t) && t.kind === 'parameter'
    ? 'Bind it in parts, or packed in a smaller format (WeightStore does both).'
    : 'Use a smaller batch or image; decode latents in tiles (decodeTiled); train with gradient checkpointing or a smaller batch.';

async function record(engine: Engine, lowered: readonly Lowered[], memory: ProgramMemory): Promise<Step[]> {
  const { device, profile, pipelines, pace } = engine;
  const align = profile.limits.minUniformBufferOffsetAlignment;
  const prepared = lowered.flatMap(({ node, specs }) =>
    specs.map((spec) => {
      let { epilogueText } = spec;
      const cost = spec.cost ?? nodeCost(node, (t) => memory.bytesOf(t));
      const long = spec.workgroups > 1 && pace.mayBeLong(workOf(cost));
      const includes = { ...spec.includes, ...(long && { 'lib/index.wgsl': 'lib/index_of_slice.wgsl' }) };
      const all: Record<string, Bindable> = { ...spec.bindings };
      if (spec.epilogueWidth && node.epilogue) {
        const operands = [node.outputs[0]!, ...node.epilogue.inputs];
        const base = specialise(spec.shader, { prologue: spec.prologue, includes });
        epilogueText = emitEpilogue(node.epilogue.program, node.outputs[0]!.shape, operands, {
          width: spec.epilogueWidth,
          firstBinding: 1 + highestBinding(base),
          fromValue: true,
        });
        node.epilogue.inputs.forEach((t, k) => (all[`e${k}`] = t));
      }
      const text = specialise(spec.shader, { prologue: spec.prologue, includes, epilogue: epilogueText });
      return { node, spec, all, cost, long, info: reflect(spec.shader.file, text, spec.entry) };
    }),
  );

  // One uniform buffer holds the parameters of all dispatches; equal ones share a place.
  const places = new Map<string, number>();
  const chunks: Uint8Array[] = [];
  let uniformBytes = 0;
  const uniformAt = prepared.map(({ info, spec }) => {
    if (!info.params) {
      if (spec.params && Object.keys(spec.params).length) throw new BruitError('shader', `shaders/${info.file} (${info.entry}) has no params, but values were given: ${Object.keys(spec.params).join(', ')}`);
      return 0;
    }
    const bytes = new Uint8Array(Math.ceil(info.params.size / align) * align);
    packParams(info, spec.params ?? {}, new DataView(bytes.buffer), 0);
    const key = String(bytes);
    let at = places.get(key);
    if (at === undefined) {
      at = uniformBytes;
      places.set(key, at);
      chunks.push(bytes);
      uniformBytes += bytes.length;
    }
    return at;
  });
  // After them, where a dispatch may be cut, the numbers of slices.
  const slices = prepared.some(({ long }) => long) ? maxSlices : 0;
  const uniformData = new Uint8Array(uniformBytes + slices * align || 16);
  for (let i = 0; i < slices; i++) new Uint32Array(uniformData.buffer, uniformBytes + i * align)[0] = i;
  let filled = 0;
  for (const c of chunks) {
    uniformData.set(c, filled);
    filled += c.length;
  }
  const uniforms = memory.createUniforms(uniformData);

  const ready = await engine.settle(Promise.all(prepared.map(({ info, spec }) => pipelines.get(info, spec.overrides))));
  return prepared.map(({ node, spec, all, cost, long, info }, i): Step => {
    const label = `${node.path || 'graph'}:${node.op.name}${spec.entry === 'forward' ? '' : `.${spec.entry}`}`;
    const entries: GPUBindGroupEntry[] = [];
    for (const [name, { binding, type }] of info.bindings) {
      if (type === 'uniform') {
        const [offset, size] = name === 'slice' ? [uniformBytes, 16] : [uniformAt[i]!, info.params!.size];
        entries.push({ binding, resource: { buffer: uniforms, offset, size } });
        continue;
      }
      const t = all[name];
      if (!t) throw new BruitError('shader', `shaders/${info.file} (${info.entry}): nothing is bound to '${name}'`);
      const view = memory.view(t);
      entries.push({ binding, resource: { buffer: view.buffer, offset: view.offset, size: padded(memory.bytesOf(t)) } });
    }
    for (const name of Object.keys(all)) {
      if (!info.bindings.has(name)) throw new BruitError('shader', `shaders/${info.file} (${info.entry}) does not use a binding '${name}'`);
    }
    if (!Number.isInteger(spec.workgroups) || spec.workgroups < 1) throw new BruitError('shader', `${label}: ${spec.workgroups} workgroups`);
    return {
      label,
      node,
      info,
      pipeline: ready[i]!,
      bindGroup: device.createBindGroup({ label, layout: ready[i]!.getBindGroupLayout(0), entries }),
      offsets: long ? [0] : [],
      workgroups: folded(spec.workgroups, profile),
      cost,
      operands: all,
      params: spec.params ?? {},
    };
  });
}

/** Flops of the op (and its epilogue), and the bytes of all operands and results once. */
export function nodeCost(node: PlannedNode, stored: (t: Tensor) => number): Cost {
  const fused = node.epilogue ? numel(node.outputs[0]!.shape) * node.epilogue.program.steps.reduce((n, s) => n + s.row.flops, 0) : 0;
  return {
    flops: node.op.flops(node.inputs, node.outputs, node.attrs as never) + fused,
    bytes: [...readsOf(node), ...node.outputs].reduce((n, t) => n + stored(t), 0),
  };
}

/** A recorded plan with all its GPU objects. */
export class Program {
  private destroyed = false;
  /** The steps of each submission and their work, cut by what the adapter's speed was found to be. */
  private submissions: readonly Submission[] = [];
  private cutFor = 0;

  constructor(
    readonly engine: Engine,
    private readonly memory: ProgramMemory,
    readonly steps: readonly Step[],
  ) {}

  /** Flops and bytes of a run, as one number ({@link workOf}). */
  get work(): number {
    return this.steps.reduce((n, { cost }) => n + workOf(cost), 0);
  }

  /** Planned, naive and unavoidable bytes of activations. */
  get plan(): MemoryPlan {
    return this.memory.plan;
  }

  /** GPU memory of the program's own, as planned: values, and leaves without `bindings`. Parameters of kernels are not in it: a few bytes each, and the numbers of slices where a dispatch may be cut. */
  get bytes(): number {
    return this.memory.bytes;
  }

  /** Writes an input or state before the next run. `data` fills the tensor; f16 tensors take f16 bits as Uint16Array. */
  write(t: Tensor, data: HostData | Uint16Array): void {
    this.assertUsable();
    if (data.byteLength !== t.bytes) throw new BruitError('input', `write: ${t} takes ${t.bytes} bytes (${t.dtype}), got ${data.byteLength}`);
    // An input that nothing reads was dropped with the dead code.
    if (t.kind === 'input' && !this.memory.has(t)) return;
    const view = this.memory.view(t);
    let bytes = new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
    // Writes come in multiples of 4 bytes; tensor buffers are padded.
    if (bytes.length % 4) {
      const whole = new Uint8Array(Math.ceil(bytes.length / 4) * 4);
      whole.set(bytes);
      bytes = whole;
    }
    this.engine.device.queue.writeBuffer(view.buffer, view.offset, bytes);
  }

  /** Memory of a tensor, to bind it elsewhere: of leaves and outputs. Of other values, where they lie from the dispatch that makes them to the last that reads them. */
  view(t: Bindable): BufferView {
    return this.memory.view(t);
  }

  /** Replays the program `times` times. Returns when submitted; await `done()` for the GPU. */
  run(times = 1): void {
    this.assertUsable();
    const { device, pace, profile } = this.engine;
    for (let k = 0; k < times; k++) {
      const { budget } = pace;
      if (!(Math.abs(budget / this.cutFor - 1) < 0.3)) this.submissions = cut(this.steps, (this.cutFor = budget), profile);
      for (const { steps, work } of this.submissions) {
        const encoder = device.createCommandEncoder();
        this.encode(encoder, steps);
        device.queue.submit([encoder.finish()]);
        pace.submitted(work);
      }
    }
  }

  /**
   * Records one replay into the caller's command encoder, as one compute pass; it runs when the caller submits. {@link run} cuts long programs into
   * several submissions, here that is the caller's to do: `steps` may be any part of {@link Program.steps}, in order.
   */
  encode(encoder: GPUCommandEncoder, steps: readonly Step[] = this.steps): void {
    this.assertUsable();
    const pass = encoder.beginComputePass();
    let pipeline: GPUComputePipeline | undefined;
    for (const step of steps) {
      if (step.pipeline !== pipeline) pass.setPipeline((pipeline = step.pipeline));
      pass.setBindGroup(0, step.bindGroup, step.offsets);
      pass.dispatchWorkgroups(step.workgroups[0], step.workgroups[1]);
    }
    pass.end();
  }

  /** Resolves when everything submitted so far has run; rejects if the device was lost. */
  async done(): Promise<void> {
    await this.engine.settle(this.engine.device.queue.onSubmittedWorkDone());
  }

  /** Copies a leaf or output to the host. f16 comes as bits (Uint16Array). */
  async readRaw(t: Tensor): Promise<ArrayBuffer> {
    this.assertUsable();
    return this.engine.readBuffer(this.memory.view(t), t.bytes);
  }

  /** {@link readRaw} of an f32 tensor. */
  async read(t: Tensor): Promise<Float32Array> {
    if (t.dtype !== 'f32') throw new BruitError('input', `read: ${t} is ${t.dtype}; use readRaw`);
    return new Float32Array(await this.readRaw(t));
  }

  /** Frees all buffers that the program made. Bindings of the caller's stay. */
  destroy(): void {
    this.destroyed = true;
    this.memory.destroy();
  }

  private assertUsable(): void {
    if (this.destroyed) throw new BruitError('input', 'This program was destroyed.');
    this.engine.assertAlive();
  }
}

interface Submission {
  readonly steps: Step[];
  work: number;
}

/** Most slices of a dispatch. */
const maxSlices = 256;

/** Steps in submissions of at most `budget` work each; a longer dispatch in slices of its workgroups. */
function cut(steps: readonly Step[], budget: number, profile: AdapterProfile): Submission[] {
  const submissions: Submission[] = [];
  const add = (step: Step, work: number) => {
    const last = submissions.at(-1);
    if (!last || last.work + work > budget) submissions.push({ steps: [step], work });
    else {
      last.steps.push(step);
      last.work += work;
    }
  };
  for (const step of steps) {
    const work = workOf(step.cost);
    const groups = step.workgroups[0] * step.workgroups[1];
    const workgroups = folded(Math.ceil(groups / (step.offsets.length ? Math.min(Math.ceil(work / budget), maxSlices) : 1)), profile);
    const size = workgroups[0] * workgroups[1];
    // The last slice may be longer than what is left: kernels check their index.
    for (let slice = 0; slice * size < groups; slice++) add(size < groups ? { ...step, workgroups, offsets: [slice * profile.limits.minUniformBufferOffsetAlignment] } : step, (work * size) / groups);
  }
  return submissions;
}

/** A number of workgroups over x and y. */
function folded(workgroups: number, { limits }: AdapterProfile): readonly [number, number] {
  const y = Math.ceil(workgroups / limits.maxComputeWorkgroupsPerDimension);
  return [Math.ceil(workgroups / y), y];
}
