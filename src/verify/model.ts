/**
 * A model's forward pass against `io.safetensors`: recorded activations `act.PATH` and outputs, for each file of weights.
 * What is particular to a class of models is one {@link ModelClass} (models/).
 */
import type { Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import { Graph, type Tensor } from '../engine/graph';
import { compile } from '../engine/program';
import { sameShape, showShape, type Shape } from '../engine/shape';
import type { TensorStore } from '../io/safetensors';
import type { ModelContext } from '../model/layers';
import { Parameters, WeightStore } from '../model/parameters';
import type { TrainingStepConfig } from '../train/step';
import { tolerances, type CaseFolder, type CaseReport } from './report';

export const IO = 'io.safetensors';

/** How cases of one class of models are read and computed. */
export interface ModelClass {
  /** What config.json calls it: `_class_name` of diffusers, `architectures[0]` of transformers. */
  readonly names: readonly string[];
  /** Its file of weights is WEIGHTS.safetensors; WEIGHTS.VARIANT.safetensors and sharded indices count too. */
  readonly weights: 'diffusion_pytorch_model' | 'model';
  /** Inputs that tell a record of its forward pass: any one of them. */
  readonly inputs: readonly string[];
  /** @throws BruitError `config`, naming `file`. */
  open(config: unknown, file: string): OpenModel;
}

export interface OpenModel {
  /**
   * Adds to the graph what `io` has inputs for, each input as a `graph.input` leaf of its recorded name, and returns the outputs by their recorded
   * names, in PyTorch's layout and in order of execution. Outputs that `io` lacks are not computed.
   */
  forward(ctx: ModelContext, io: RecordedInputs): Readonly<Record<string, Tensor>>;
  /** For denoisers: the prediction for a sample and a time step that the graph computes; other inputs as in `forward`. */
  readonly denoise?: (ctx: ModelContext, io: RecordedInputs, sample: Tensor, timestep: Tensor) => Tensor;
  /** For classes whose training records `{x0, noise, t}` can be replayed. */
  readonly training?: Pick<TrainingStepConfig, 'buildModel' | 'labelled'>;
}

/** Shapes of a record's tensors, by name. */
export interface RecordedInputs {
  has(name: string): boolean;
  /** @throws BruitError `input` if it is not recorded, or has another rank. */
  shape(name: string, rank: number): Shape;
}

export function recordedInputs(io: TensorStore): RecordedInputs {
  return {
    has: (name) => io.tensors.has(name),
    shape(name, rank) {
      const shape = io.tensors.get(name)?.shape;
      if (!shape) throw new BruitError('input', `${io.name} has no tensor "${name}", which the forward pass needs`);
      if (shape.length !== rank) throw new BruitError('input', `${io.name}: ${name} is ${showShape(shape)}, but has ${rank} axes in this model`);
      return shape;
    },
  };
}

/** Files of weights, or the index of their shards, by variant: '' for the plain one, else `fp16`, `bf16`, …. */
export function weightFiles(folder: CaseFolder, { weights }: Pick<ModelClass, 'weights'>): Map<string, string> {
  const pattern = new RegExp(`^${weights}(?:\\.([\\w-]+))?\\.safetensors(\\.index\\.json)?$`);
  const found = new Map<string, string>();
  for (const file of folder.files) {
    const match = pattern.exec(file);
    if (match) found.set(match[1] ?? '', file);
  }
  if (found.size === 0) throw new BruitError('input', `${folder.name} has a config.json, but no ${weights}.safetensors beside it`);
  return found;
}

export const hasForwardRecord = ({ inputs }: ModelClass, io: TensorStore): boolean => inputs.some((name) => io.tensors.has(name));

export async function verifyForward(report: CaseReport, engine: Engine, folder: CaseFolder, model: ModelClass, opened: OpenModel): Promise<void> {
  const io = await folder.tensors(IO);
  const weights = weightFiles(folder, model);
  const handled = new Set<string>();
  for (const [variant, file] of weights) {
    // A single file is what the plain names belong to, whatever its variant.
    const suffix = variant && (weights.size > 1 || [...io.tensors.keys()].some((name) => name.endsWith(`_${variant}`))) ? `_${variant}` : '';
    report.kinds.push(`${model.names[0]} forward${suffix ? ` (${variant} weights)` : ''}`);
    const { inputs, computed } = await recomputeForward(engine, opened, { io, weights: await folder.tensors(file), variant, suffix });
    for (const name of [...inputs, ...computed.map((t) => t.name)]) handled.add(name);
    for (const { name, data, exact } of computed) await report.compare(io, IO, name, data, (largest) => (exact ? 0 : tolerances.model * largest));
  }
  // Weights-in-float32 outputs have no file of weights to be computed from, and training records belong to another check.
  for (const name of io.tensors.keys()) {
    if (handled.has(name) || /^\d+\.|^(grad|clipped|param|ema)\.|^grad_norm$/.test(name)) continue;
    report.skip(IO, name, name.startsWith('act.') ? `the model has no module "${name.slice(4)}"` : 'nothing in the case says how to compute it');
  }
}

export interface ForwardRecord {
  readonly io: TensorStore;
  readonly weights: TensorStore;
  /** Of the file of weights. */
  readonly variant?: string;
  /** Behind the names of what these weights give, where a case has several files: `_fp16`. */
  readonly suffix?: string;
  /** Fill the program's memory with NaN first (tests). */
  readonly poison?: boolean;
}

export interface RecomputedForward {
  /** Names that were read. */
  readonly inputs: readonly string[];
  /** In order of execution, in the layout of the record; `exact` where there is nothing to round. */
  readonly computed: readonly { readonly name: string; readonly data: Float32Array; readonly exact: boolean }[];
}

/** Everything in the record that one file of weights determines. */
export async function recomputeForward(engine: Engine, model: OpenModel, { io, weights, variant = '', suffix = '', poison = false }: ForwardRecord): Promise<RecomputedForward> {
  const prefix = `act${suffix}.`;
  const wanted = new Set([...io.tensors.keys()].filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length)));
  const tapped = new Map<string, Tensor>();
  const graph = new Graph();
  const parameters = new Parameters(graph);
  const ctx: ModelContext = {
    graph,
    parameters,
    // The first pass that reaches a module is the recorded one, where there are several.
    tap: (path, value) => void (wanted.has(path) && !tapped.has(path) && tapped.set(path, value)),
    wantsTap: (path) => wanted.has(path),
  };
  const outputs = Object.entries(model.forward(ctx, recordedInputs(io)))
    .map(([name, value]) => [name + suffix, value] as const)
    .filter(([name]) => io.tensors.has(name));
  const store = await WeightStore.fromCheckpoint(engine, parameters.specs.values(), weights);
  try {
    const program = await compile(engine, graph, { outputs: [...tapped.values(), ...outputs.map(([, value]) => value)], bindings: store.bindings(parameters), label: 'forward', poison });
    try {
      const leaves = graph.leaves.filter((leaf) => leaf.kind === 'input');
      for (const leaf of leaves) program.write(leaf, await readInput(io, leaf));
      program.run();
      const computed: { name: string; data: Float32Array; exact: boolean }[] = [];
      // Weights first: then a miss there is not blamed on a layer.
      for (const name of variant ? io.tensors.keys() : []) {
        const module = new RegExp(`^(.+)_${variant}_as_float32$`).exec(name)?.[1];
        const weight = module === undefined ? undefined : [`${module}.weight`, module].find((candidate) => parameters.specs.has(candidate));
        if (weight) computed.push({ name, data: await store.read(weight), exact: true });
      }
      for (const [path, value] of tapped) computed.push({ name: prefix + path, data: recordedLayout(path, value, await program.read(value)), exact: false });
      for (const [name, value] of outputs) computed.push({ name, data: await program.read(value), exact: false });
      return { inputs: leaves.map((leaf) => leaf.name), computed };
    } finally {
      program.destroy();
    }
  } finally {
    store.destroy();
  }
}

/** An input leaf's values; one time step or label for the whole batch is repeated. */
export async function readInput(io: TensorStore, leaf: Tensor): Promise<Float32Array | Int32Array> {
  if (!io.tensors.has(leaf.name)) throw new BruitError('input', `${io.name} has no tensor "${leaf.name}", which this model's config asks for`);
  const { shape } = io.tensors.get(leaf.name)!;
  const values = leaf.dtype === 'i32' ? await io.readI32(leaf.name) : await io.readF32(leaf.name);
  if (sameShape(shape, leaf.shape)) return values;
  if (leaf.shape.length === 1 && values.length === 1) return leaf.dtype === 'i32' ? new Int32Array(leaf.shape[0]!).fill(values[0]!) : new Float32Array(leaf.shape[0]!).fill(values[0]!);
  throw new BruitError('input', `${io.name}: ${leaf.name} is [${shape.join(',')}], but the config asks for [${leaf.shape.join(',')}]`);
}

/** From the engine's channels-last order to PyTorch's: images to NCHW, and the group norm before an attention, which works on [N,C,T]. */
function recordedLayout(path: string, { shape }: Tensor, data: Float32Array): Float32Array {
  if (!(shape.length === 4 || (shape.length === 3 && path.endsWith('group_norm')))) return data;
  const [n, channels] = [shape[0]!, shape[shape.length - 1]!];
  const pixels = data.length / n / channels;
  const out = new Float32Array(data.length);
  for (let i = 0; i < n; i++) for (let p = 0; p < pixels; p++) for (let c = 0; c < channels; c++) out[(i * channels + c) * pixels + p] = data[(i * pixels + p) * channels + c]!;
  return out;
}
