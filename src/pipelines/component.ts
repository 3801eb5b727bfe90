/** What pipelines share: models of a folder in diffusers' layout whose weights come into GPU memory when they are used and leave it afterwards. */
import type { Engine } from '../engine/device';
import { BruitError, check } from '../engine/errors';
import { Graph, type HostData, type Tensor } from '../engine/graph';
import { compile, type BufferView, type Program } from '../engine/program';
import { openWeights, readJson, type ModelFolder } from '../io/folder';
import type { MatchOptions } from '../io/checkpoint';
import type { TensorStore } from '../io/safetensors';
import { hoistables, type ModelContext } from '../model/layers';
import { MergedLoras, readLora, type WeightedLora } from '../model/lora';
import { Parameters, WeightStore } from '../model/parameters';
import type { StorageReport } from '../model/weight_error';
import type { WeightStorage } from '../model/weight_format';
import { parseSchedulerConfig, type SchedulerConfig } from '../sampler/scheduler_config';

/** A LoRA file that a pipeline has loaded. */
export interface LoadedLora {
  readonly store: TensorStore;
  readonly scale: number;
}

export interface ComponentOptions<C> {
  /** Sub-folder of the pipeline's. */
  readonly name: string;
  /** Base name of its file of weights: diffusers' or transformers'. */
  readonly weights: 'diffusion_pytorch_model' | 'model';
  readonly parse: (json: unknown, file: string) => C;
  /** Builds the whole model at any size, so that all its weights are named. */
  readonly declare: (ctx: ModelContext, config: C) => void;
  readonly load?: MatchOptions;
  /** For kohya's names of LoRA layers. */
  readonly layersPerBlock?: (config: C) => number;
}

/** How a pipeline's weights are held. */
export interface LoadingOptions {
  /** They stay in GPU memory from their first use to {@link Component.destroy}, in place of being loaded for each. */
  readonly keep?: boolean;
  /**
   * How they lie in GPU memory, for all components or by the component's name: `auto` (as the checkpoint has them: f16, bf16 or f32), or one format.
   * int8 and int4 round: `onWeights` tells by how much.
   */
  readonly weights?: WeightStorage | ((component: string) => WeightStorage);
  /** Decode latents of more than 64 a side in tiles, in bounded memory (diffusers: `enable_vae_tiling`). Without it, only what does not fit the device's bindings. */
  readonly vaeTiling?: boolean;
  /** Called whenever a component's weights have been loaded. */
  readonly onWeights?: (component: string, report: readonly StorageReport[]) => void;
}

/** One model of a pipeline. */
export class Component<C> {
  private kept: WeightStore | undefined;

  private constructor(
    readonly engine: Engine,
    readonly folder: ModelFolder,
    readonly config: C,
    /** Its config.json as it is. */
    readonly json: Readonly<Record<string, unknown>>,
    private readonly options: ComponentOptions<C>,
    readonly loading: LoadingOptions,
  ) {}

  /** Reads and checks the config; weights are not touched. `true` is `{ keep: true }`. */
  static async open<C>(engine: Engine, folder: ModelFolder, options: ComponentOptions<C>, loading: LoadingOptions | boolean = {}): Promise<Component<C>> {
    check(await folder.has(`${options.name}/config.json`), 'checkpoint', () => `${folder.name}: ${options.name}/config.json is missing; the pipeline needs this component`);
    const json = await readJson(folder, `${options.name}/config.json`);
    return new Component(engine, folder, options.parse(json, `${folder.name}/${options.name}/config.json`), json, options, typeof loading === 'boolean' ? { keep: loading } : loading);
  }

  /** Its sub-folder. */
  get name(): string {
    return this.options.name;
  }

  /** Runs a graph of the model once; see {@link runOnce}. */
  run<K extends string>(build: BuildGraph<K>, loras: readonly LoadedLora[] = []): Promise<Record<K, Float32Array>> {
    return this.use((weights) => runOnce(this.engine, weights, build), loras);
  }

  /** Runs `work` with the weights in GPU memory, changed by the parts of `loras` that are for this model. */
  async use<T>(work: (weights: WeightStore) => Promise<T>, loras: readonly LoadedLora[] = []): Promise<T> {
    const weights = this.kept ?? (await this.load());
    let merged: MergedLoras | undefined;
    try {
      const adapters = await this.adapters(weights, loras);
      if (adapters.length) {
        merged = new MergedLoras(this.engine, weights);
        await merged.set(adapters);
      }
      return await work(weights);
    } finally {
      merged?.destroy();
      if (!this.loading.keep) weights.destroy();
    }
  }

  private async load(): Promise<WeightStore> {
    const { name, declare, weights: base, load } = this.options;
    const parameters = new Parameters(new Graph());
    declare({ graph: parameters.graph, parameters }, this.config);
    const store = await openWeights(this.folder, name, base);
    try {
      const { weights: wanted = 'auto', onWeights, keep } = this.loading;
      const weights = await WeightStore.fromCheckpoint(this.engine, parameters.specs.values(), store, { label: name, storage: typeof wanted === 'function' ? wanted(name) : wanted, ...load });
      onWeights?.(name, weights.storageReport());
      if (keep) this.kept = weights;
      return weights;
    } finally {
      await store.close();
    }
  }

  private async adapters(weights: WeightStore, loras: readonly LoadedLora[]): Promise<WeightedLora[]> {
    const { name, layersPerBlock } = this.options;
    const adapters: WeightedLora[] = [];
    for (const { store, scale } of loras) {
      const lora = await readLora(store, name, weights.specs, { allowNone: true, ...(layersPerBlock && { layersPerBlock: layersPerBlock(this.config) }) });
      if (lora.modules.size) adapters.push({ lora, scale });
    }
    return adapters;
  }

  destroy(): void {
    this.kept?.destroy();
    this.kept = undefined;
  }
}

/** A graph's input leaves with their values. */
export class Inputs {
  private readonly values: [Tensor, HostData][] = [];

  constructor(private readonly graph: Graph) {}

  add(name: string, shape: readonly number[], data: Float32Array | Int32Array): Tensor {
    const leaf = this.graph.input(name, [...shape], data instanceof Int32Array ? 'i32' : 'f32');
    this.values.push([leaf, data]);
    return leaf;
  }

  write(program: { write(t: Tensor, data: HostData): void }): void {
    for (const [leaf, data] of this.values) program.write(leaf, data);
  }
}

export type BuildGraph<K extends string> = (ctx: ModelContext, inputs: Inputs) => Readonly<Record<K, Tensor>>;

/** Runs a graph once and reads its results; `weights` are those that it names, if any. */
export async function runOnce<K extends string>(engine: Engine, weights: WeightStore | undefined, build: BuildGraph<K>): Promise<Record<K, Float32Array>> {
  const parameters = new Parameters(new Graph());
  const inputs = new Inputs(parameters.graph);
  const outputs = build({ graph: parameters.graph, parameters }, inputs);
  const program = await compile(engine, parameters.graph, { outputs: Object.values(outputs), ...(weights && { bindings: weights.bindings(parameters), label: weights.label }) });
  try {
    inputs.write(program);
    program.run();
    const values = {} as Record<K, Float32Array>;
    for (const [name, t] of Object.entries(outputs) as [K, Tensor][]) values[name] = await program.read(t);
    return values;
  } finally {
    program.destroy();
  }
}

/** Writes a graph's input leaves by name; leaves of other names stay as they are. */
export function writeInputs(program: Program, { leaves }: Graph, inputs: Readonly<Record<string, HostData>>): void {
  for (const leaf of leaves) if (leaf.kind === 'input' && inputs[leaf.name]) program.write(leaf, inputs[leaf.name]!);
}

/** Values of a denoiser that depend on the text alone, computed once for a whole trajectory (keys and values of cross-attention). */
export interface TextValues {
  /** `hoist` for the {@link ModelContext} of a step's graph. */
  hoist(graph: Graph): NonNullable<ModelContext['hoist']>;
  /** Memory of the values that `hoist` has handed out. */
  readonly bindings: ReadonlyMap<Tensor, BufferView>;
  destroy(): void;
}

/** @param build Adds the whole denoiser; what is not needed for the text's values is dead code. */
export async function textValues(engine: Engine, weights: WeightStore, inputs: Readonly<Record<string, HostData>>, build: (ctx: ModelContext) => void): Promise<TextValues> {
  const parameters = new Parameters(new Graph());
  const values = hoistables('text', (hoist) => build({ graph: parameters.graph, parameters, hoist }));
  const bindings = new Map<Tensor, BufferView>();
  if (values.size === 0) return { hoist: () => (_, compute) => compute(), bindings, destroy: () => undefined };
  const program = await compile(engine, parameters.graph, { outputs: [...values.values()], bindings: weights.bindings(parameters), label: 'text values' });
  writeInputs(program, parameters.graph, inputs);
  program.run();
  return {
    hoist: (graph) => ({ path, of }, compute) => {
      const value = values.get(path);
      if (of !== 'text' || !value) return compute();
      const t = graph.parameter(`${path} of the text`, value.shape, value.dtype);
      bindings.set(t, program.view(value));
      return t;
    },
    bindings,
    destroy: () => program.destroy(),
  };
}

/** The class that a pipeline folder names. */
export async function pipelineClass(folder: ModelFolder): Promise<string> {
  check(await folder.has('model_index.json'), 'checkpoint', () => `${folder.name}: no model_index.json; this is not a pipeline folder in diffusers' layout`);
  const { _class_name: name } = await readJson(folder, 'model_index.json');
  if (typeof name !== 'string') throw new BruitError('config', `${folder.name}: model_index.json names no class`);
  return name;
}

/** @throws BruitError `config` unless model_index.json names `wanted`. */
export async function checkPipelineClass(folder: ModelFolder, wanted: string): Promise<void> {
  const name = await pipelineClass(folder);
  if (name !== wanted) throw new BruitError('config', `${folder.name}: model_index.json names ${name}; this pipeline loads ${wanted}`);
}

export const openScheduler = async (folder: ModelFolder, name = 'scheduler'): Promise<SchedulerConfig> =>
  parseSchedulerConfig(await folder.text(`${name}/scheduler_config.json`), `${folder.name}/${name}/scheduler_config.json`);

/** Repeats rows until there are `rows` of them: as a whole ([a, b, a, b]), or each in its place ([a, a, b, b]). */
export function repeatRows(data: Float32Array, from: number, rows: number, { each = false, what }: { each?: boolean; what: string }): Float32Array {
  check(rows % from === 0, 'input', () => `${what}: ${from} cannot be spread over ${rows} images`);
  const size = data.length / from;
  const out = new Float32Array(size * rows);
  for (let i = 0; i < rows; i++) {
    const row = each ? Math.floor(i / (rows / from)) : i % from;
    out.set(data.subarray(row * size, (row + 1) * size), i * size);
  }
  return out;
}
