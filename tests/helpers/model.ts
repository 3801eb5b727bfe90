/** Models with random weights, for comparison with plain references. */
import type { Engine } from '../../src/engine/device';
import { Graph, type HostData, type Tensor } from '../../src/engine/graph';
import { compile } from '../../src/engine/program';
import type { ModelContext } from '../../src/model/layers';
import { Parameters, WeightStore } from '../../src/model/parameters';

export interface RandomModel<K extends string> {
  readonly values: Readonly<Record<K, Float32Array>>;
  /** By name, in the checkpoint's layout. */
  readonly weights: ReadonlyMap<string, Float32Array>;
}

/** Runs what `build` returns on weights drawn from `seed` (norms' and biases' included); inputs by the names of their leaves. */
export async function runRandomModel<K extends string>(engine: Engine, build: (ctx: ModelContext) => Record<K, Tensor>, inputs: Readonly<Record<string, HostData>>, seed = 1): Promise<RandomModel<K>> {
  const graph = new Graph();
  const parameters = new Parameters(graph);
  const outputs = build({ graph, parameters });
  const store = new WeightStore(engine, parameters.specs.values());
  store.initialise(seed);
  // Norms start as the identity, which would hide a wrong order of factors.
  for (const spec of store.specs) if (spec.init.kind === 'constant') store.write(spec.name, (await store.read(spec.name)).map((v, i) => v + 0.5 * Math.sin(3 * i + spec.name.length)));
  const weights = new Map((await store.readAll()).map((t) => [t.name, t.data]));
  const program = await compile(engine, graph, { outputs: Object.values(outputs), bindings: store.bindings(parameters), poison: true });
  for (const leaf of graph.leaves) if (leaf.kind === 'input') program.write(leaf, inputs[leaf.name]!);
  program.run();
  const values = {} as Record<K, Float32Array>;
  for (const key of Object.keys(outputs) as K[]) values[key] = await program.read(outputs[key]);
  program.destroy();
  store.destroy();
  return { values, weights };
}
