/**
 * Models of a pipeline, one after another: weights come when a model runs and go when it is done, so that the largest model decides how much memory a
 * pipeline takes and not their sum.
 */
import type { Engine } from '../engine/device';
import { BruitError, check } from '../engine/errors';
import { Graph, type HostData, type Tensor } from '../engine/graph';
import { compile } from '../engine/program';
import type { MatchOptions } from '../io/checkpoint';
import { openWeights, readJson, type ModelFolder } from '../io/folder';
import type { ModelContext } from '../model/layers';
import { Parameters, WeightStore } from '../model/parameters';
import { parseSchedulerConfig, type SchedulerConfig } from '../sampler/scheduler_config';

/** A component of a pipeline's folder. */
export interface Component<Config> {
  readonly folder: ModelFolder;
  /** Its sub-folder. */
  readonly name: string;
  readonly config: Config;
  /** Its weights are in WEIGHTS.safetensors, WEIGHTS.fp16.safetensors or shards: diffusers' name, or `model` of transformers. */
  readonly weights: 'diffusion_pytorch_model' | 'model';
}

/** Reads and checks a component's config.json; no weights yet. */
export async function openComponent<Config>(folder: ModelFolder, name: string, parse: (json: unknown, file: string) => Config, weights: Component<Config>['weights'] = 'diffusion_pytorch_model'): Promise<Component<Config>> {
  const file = `${name}/config.json`;
  check(await folder.has(file), 'checkpoint', () => `${folder.name}: ${file} is missing; the pipeline needs this component`);
  return { folder, name, config: parse(await readJson(folder, file), `${folder.name}/${file}`), weights };
}

/** @throws BruitError `config` unless model_index.json names one of `classes`. */
export async function checkPipelineClass(folder: ModelFolder, classes: readonly string[]): Promise<void> {
  check(await folder.has('model_index.json'), 'checkpoint', () => `${folder.name}: no model_index.json; this is not a pipeline folder in diffusers' layout`);
  const { _class_name: name } = await readJson(folder, 'model_index.json');
  if (!classes.includes(String(name))) throw new BruitError('config', `${folder.name}: model_index.json names ${JSON.stringify(name)}; this pipeline loads ${classes.join(', ')}`);
}

export const openScheduler = async (folder: ModelFolder, name = 'scheduler'): Promise<SchedulerConfig> =>
  parseSchedulerConfig(await folder.text(`${name}/scheduler_config.json`), `${folder.name}/${name}/scheduler_config.json`);

/** Loads what `declare` asks for of the component's weights, and frees it after `body`. */
export async function withWeights<T>(engine: Engine, { folder, name, weights: base }: Component<unknown>, declare: (ctx: ModelContext) => unknown, body: (weights: WeightStore) => Promise<T>, match?: MatchOptions): Promise<T> {
  const parameters = new Parameters(new Graph());
  declare({ graph: parameters.graph, parameters });
  const weights = new WeightStore(engine, parameters.specs.values(), name);
  try {
    const store = await openWeights(folder, name, base);
    await weights.load(store, undefined, match).finally(() => store.close());
    return await body(weights);
  } finally {
    weights.destroy();
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

/** Runs a graph once and reads its results. The weights of a component are loaded before and freed after; those of a store are there already. */
export async function evaluate<K extends string>(
  engine: Engine,
  from: Component<unknown> | WeightStore | undefined,
  build: (ctx: ModelContext, inputs: Inputs) => Readonly<Record<K, Tensor>>,
  match?: MatchOptions,
): Promise<Record<K, Float32Array>> {
  const graph = new Graph();
  const parameters = new Parameters(graph);
  const inputs = new Inputs(graph);
  const outputs = Object.entries<Tensor>(build({ graph, parameters }, inputs));
  const weights = from instanceof WeightStore ? from : new WeightStore(engine, parameters.specs.values(), from?.name ?? 'pipeline');
  try {
    if (from && !(from instanceof WeightStore)) {
      const store = await openWeights(from.folder, from.name, from.weights);
      await weights.load(store, undefined, match).finally(() => store.close());
    }
    const program = await compile(engine, graph, { outputs: outputs.map(([, t]) => t), bindings: weights.bindings(parameters), label: weights.label });
    try {
      inputs.write(program);
      program.run();
      const results = {} as Record<K, Float32Array>;
      for (const [key, t] of outputs) results[key as K] = await program.read(t);
      return results;
    } finally {
      program.destroy();
    }
  } finally {
    if (weights !== from) weights.destroy();
  }
}
