/** What a graph's activations take in GPU memory, without a device: the passes, lowering and memory plan of `compile` on a profile alone. */
import type { AdapterProfile } from './device';
import type { Graph, Tensor } from './graph';
import type { Bindable, TempTensor } from './op';
import { fuse, readsOf, removeDeadCode } from './passes';
import { planMemory, type MemoryPlan } from './plan';
import { dtypeBytes, numel } from './shape';

export interface GraphEstimate extends MemoryPlan {
  /** Dispatches of one run. */
  readonly dispatches: number;
  /** Nodes after dead code and fusion. */
  readonly nodes: number;
}

/**
 * The memory plan that `compile` would make for `outputs` on a device with this profile. Weights are not in it: a model's `Parameters` know those.
 * @throws BruitError `shape` where an op refuses its operands.
 */
export function estimate(graph: Graph, outputs: readonly Tensor[], profile: AdapterProfile): GraphEstimate {
  const kept = new Set(outputs);
  const nodes = fuse(removeDeadCode(graph.nodes, kept), kept, { maxStorageBuffers: profile.limits.maxStorageBuffersPerShaderStage });
  const roots = new Map<Tensor, Tensor>();
  const root = (t: Bindable): Bindable => ('temp' in t ? t : (roots.get(t) ?? t));
  const lives = new Map<Bindable, { first: number; last: number }>();
  const touch = (t: Bindable, at: number): void => {
    const life = lives.get(t);
    if (life) life.last = at;
    else lives.set(t, { first: at, last: at });
  };
  let at = 0;
  let dispatches = 0;
  for (const node of nodes) {
    if (node.op.view) {
      roots.set(node.outputs[0]!, root(node.inputs[0]!) as Tensor);
      continue;
    }
    const temps: TempTensor[] = [];
    node.op.lower({
      node,
      inputs: node.inputs,
      outputs: node.outputs,
      attrs: node.attrs as never,
      profile,
      variant: undefined,
      temp(label, shape, dtype = 'f32') {
        const t: TempTensor = { temp: true, label, shape, dtype };
        temps.push(t);
        return t;
      },
      dispatch: () => void dispatches++,
    });
    for (const t of [...readsOf(node), ...node.outputs, ...temps]) touch(root(t), at);
    at++;
  }
  for (const t of outputs) touch(root(t), at);
  const planned = [...lives].filter(([t]) => 'temp' in t || t.kind === 'value');
  const plan = planMemory(planned.map(([t, life]) => ({ bytes: Math.ceil((numel(t.shape) * dtypeBytes[t.dtype]) / 16) * 16, ...life })));
  return { ...plan, dispatches, nodes: nodes.length };
}
