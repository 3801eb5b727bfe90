/** From a graph to dispatches and a memory plan: passes, lowering, lifetimes. Needs a device's profile, not the device. */
import type { BufferView } from './buffer_view';
import type { AdapterProfile } from './device';
import type { Graph, Tensor } from './graph';
import type { Bindable, DispatchSpec, TempTensor } from './op';
import { groupProducts, type GroupedProducts } from './group_products';
import { fuse, readsOf, removeDeadCode, type PlannedNode } from './passes';
import { planMemory, type MemoryPlan } from './plan';
import { dtypeBytes, numel } from './shape';

export const bytesOf = (t: Bindable): number => numel(t.shape) * dtypeBytes[t.dtype];
/** vec4 bindings are read 16 bytes at a time. */
export const padded = (bytes: number): number => Math.ceil(bytes / 16) * 16;

export interface Lowered {
  readonly node: PlannedNode;
  readonly specs: DispatchSpec[];
  readonly temps: TempTensor[];
}

export interface PlannedGraph {
  /** Nodes after dead code and fusion that have dispatches, in order. */
  readonly lowered: readonly Lowered[];
  readonly plan: MemoryPlan;
  /** Buffer of the plan by tensor. */
  readonly slotOf: ReadonlyMap<Bindable, number>;
  /** Leaves that something reads. */
  readonly leaves: readonly Tensor[];
  /** The tensor whose memory `t` is a view of, or `t`. */
  root(t: Tensor): Tensor;
  /** What several parameters or results that lie side by side became. */
  readonly grouped: GroupedProducts | undefined;
}

export interface PlanOptions {
  /** In place of the graph's own. */
  readonly nodes?: readonly PlannedNode[];
  readonly profile: AdapterProfile;
  /** Kernel variant of a node, if not the op's own choice. */
  readonly variantOf?: (node: PlannedNode) => string | undefined;
  /** Memory of the caller's. */
  readonly bound?: ReadonlyMap<Tensor, BufferView>;
  readonly fuse?: boolean;
  /** Adds dispatches of its own to those of the nodes. */
  readonly probe?: Probe | undefined;
}

/** What looks at a program's values as they are computed (nan_probe.ts). */
export interface Probe {
  attach(lowered: readonly Lowered[]): void;
}

/** @throws BruitError `shape` where an op refuses its operands. */
export function planGraph(graph: Graph, outputs: ReadonlySet<Tensor>, { nodes: given = graph.nodes, profile, variantOf, bound, fuse: fusing = true, probe }: PlanOptions): PlannedGraph {
  let nodes: PlannedNode[] = removeDeadCode(given, outputs);
  if (fusing) nodes = fuse(nodes, outputs, { maxStorageBuffers: profile.limits.maxStorageBuffersPerShaderStage });
  const grouped = fusing && bound ? groupProducts(nodes, bound, profile.limits) : undefined;
  nodes = grouped?.nodes ?? nodes;
  const lowered = nodes.filter((n) => !n.op.view).map((node) => lower(node, profile, variantOf?.(node), bound));
  probe?.attach(lowered);

  const roots = new Map<Tensor, Tensor>();
  const root = (t: Tensor): Tensor => roots.get(t) ?? t;
  for (const n of nodes) if (n.op.view) roots.set(n.outputs[0]!, root(n.inputs[0]!));
  const lives = new Map<Bindable, { first: number; last: number }>();
  const touch = (t: Bindable, at: number): void => {
    const life = lives.get(t);
    if (!life) lives.set(t, { first: at, last: at });
    else life.last = Math.max(life.last, at);
  };
  lowered.forEach(({ node, temps }, i) => {
    for (const t of [...readsOf(node), ...node.outputs]) touch(root(t), i);
    for (const t of temps) touch(t, i);
  });
  for (const t of outputs) touch(root(t), lowered.length);

  const planned = [...lives.keys()].filter((t) => 'temp' in t || (t.kind === 'value' && !bound?.has(t)));
  const plan = planMemory(planned.map((t) => ({ bytes: padded(bytesOf(t)), ...lives.get(t)! })));
  return {
    lowered,
    plan,
    slotOf: new Map(planned.map((t, i) => [t, plan.assignment[i]!])),
    leaves: [...lives.keys()].filter((t): t is Tensor => !('temp' in t) && t.kind !== 'value'),
    root,
    grouped,
  };
}

function lower(node: PlannedNode, profile: AdapterProfile, variant: string | undefined, bound?: ReadonlyMap<Tensor, BufferView>): Lowered {
  const specs: DispatchSpec[] = [];
  const temps: TempTensor[] = [];
  node.op.lower({
    node,
    inputs: node.inputs,
    outputs: node.outputs,
    attrs: node.attrs as never,
    profile,
    variant,
    packed: (t) => bound?.get(t)?.packed?.format,
    temp(label, shape, dtype = 'f32') {
      const t: TempTensor = { temp: true, label, shape, dtype };
      temps.push(t);
      return t;
    },
    dispatch: (spec) => specs.push(spec),
  });
  return { node, specs, temps };
}
