/** What a graph's activations take in GPU memory, without a device. */
import type { AdapterProfile } from './device';
import type { Graph, Tensor } from './graph';
import type { MemoryPlan } from './plan';
import { planGraph } from './planned_graph';

export interface GraphEstimate extends MemoryPlan {
  /** Dispatches of one run. */
  readonly dispatches: number;
  /** Nodes that have dispatches, after dead code and fusion. */
  readonly nodes: number;
}

/**
 * The memory plan that `compile` would make for `outputs` on an untuned device with this profile. Weights are not in it: a model's `Parameters` know those.
 * @throws BruitError `shape` where an op refuses its operands.
 */
export function estimate(graph: Graph, outputs: readonly Tensor[], profile: AdapterProfile): GraphEstimate {
  const { lowered, plan } = planGraph(graph, new Set(outputs), { profile });
  return { ...plan, dispatches: lowered.reduce((n, { specs }) => n + specs.length, 0), nodes: lowered.length };
}
