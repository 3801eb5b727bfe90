/**
 * Passes over the node list, each pure: dead code, fusion of pointwise chains, fusion of chains into epilogues.
 *
 * Node order is execution order and stays valid: a fused node stands where the last of its parts stood.
 */
import type { Node, Tensor } from './graph';
import type { FusedEpilogue, OpDef } from './op';
import { fusedPointwiseOp, isPointwise, type PointwiseAttrs } from './ops/pointwise';
import { composePrograms, renumberOperands, type PointwiseProgram } from './pointwise_codegen';
import { sameShape } from './shape';

/** A node as it will be lowered. */
export interface PlannedNode extends Node {
  readonly epilogue?: FusedEpilogue;
}

/** Everything that a node reads: its inputs and those of its epilogue. */
export const readsOf = (n: PlannedNode): readonly Tensor[] => (n.epilogue ? [...n.inputs, ...n.epilogue.inputs] : n.inputs);

/** The tensor whose memory `t` is: itself, or what it is a view of. */
function rootOf(t: Tensor): Tensor {
  while (t.node?.op.view) t = t.node.inputs[0]!;
  return t;
}

const mutated = (n: Node): Tensor[] => (n.op.mutates ?? []).map((i) => rootOf(n.inputs[i]!));

/** Drops nodes that neither feed `outputs` nor mutate state. */
export function removeDeadCode(nodes: readonly PlannedNode[], outputs: ReadonlySet<Tensor>): PlannedNode[] {
  const live = new Set<Tensor>(outputs);
  const kept: PlannedNode[] = [];
  for (let i = nodes.length - 1; i >= 0; i--) {
    const n = nodes[i]!;
    if (!n.op.mutates && !n.outputs.some((t) => live.has(t))) continue;
    for (const t of readsOf(n)) live.add(t);
    kept.push(n);
  }
  return kept.reverse();
}

/** How often each tensor is read; graph outputs count as one reader more, since they must exist in memory. */
function countReaders(nodes: readonly PlannedNode[], outputs: ReadonlySet<Tensor>): Map<Tensor, number> {
  const readers = new Map<Tensor, number>();
  const count = (t: Tensor) => readers.set(t, (readers.get(t) ?? 0) + 1);
  for (const n of nodes) new Set(readsOf(n)).forEach(count);
  outputs.forEach(count);
  return readers;
}

/** Storing as an integer drops the fraction: that store cannot be fused away, as arithmetic is f32. */
const isFloat = (t: Tensor): boolean => t.dtype === 'f32' || t.dtype === 'f16';

/** Merges equal operands of a program. */
function mergeOperands(program: PointwiseProgram, operands: readonly Tensor[]): { program: PointwiseProgram; operands: Tensor[] } {
  const unique = [...new Set(operands)];
  return { program: renumberOperands(program, operands.map((t) => unique.indexOf(t)), unique.length), operands: unique };
}

export interface FuseOptions {
  /** Storage buffers that one kernel may bind. */
  readonly maxStorageBuffers: number;
}

/**
 * Fuses pointwise producers into their only reader, then pointwise nodes into the epilogue of the matmul, conv2d, … that they read.
 * A node is only moved past others that do not mutate what it reads.
 */
export function fuse(nodes: readonly PlannedNode[], outputs: ReadonlySet<Tensor>, { maxStorageBuffers }: FuseOptions): PlannedNode[] {
  const list: (PlannedNode | undefined)[] = [...nodes];
  const readers = countReaders(nodes, outputs);
  const producer = new Map<Tensor, number>();
  nodes.forEach((n, i) => n.outputs.forEach((t) => producer.set(t, i)));
  const lastMutation = new Map<Tensor, number>();
  nodes.forEach((n, i) => mutated(n).forEach((t) => lastMutation.set(t, i)));
  const movable = (n: PlannedNode, from: number) => readsOf(n).every((t) => (lastMutation.get(rootOf(t)) ?? -1) < from);

  list.forEach((node, i) => {
    if (!node || !isPointwise(node.op)) return;
    const out = node.outputs[0]!;
    let attrs = node.attrs as PointwiseAttrs;
    let operands = [...node.inputs];
    let fused = false;
    // Operands change as producers are merged, so start over after each merge.
    for (let k = 0; k < operands.length; k++) {
      const t = operands[k]!;
      const p = producer.get(t);
      const source = p === undefined ? undefined : list[p];
      if (!source || p === i || !isPointwise(source.op) || readers.get(t) !== 1 || !sameShape(t.shape, out.shape) || !isFloat(t) || !movable(source, p!)) continue;
      const composed = composePrograms(attrs.program, k, (source.attrs as PointwiseAttrs).program);
      const merged = mergeOperands(composed, [...operands.slice(0, k), ...operands.slice(k + 1), ...source.inputs]);
      if (merged.operands.length + 1 > maxStorageBuffers) continue;
      attrs = { ...attrs, program: merged.program };
      operands = merged.operands;
      list[p!] = undefined;
      fused = true;
      k = -1;
    }
    if (fused) list[i] = { ...node, op: fusedPointwiseOp as unknown as OpDef<never>, attrs, inputs: operands };
  });

  list.forEach((node, i) => {
    if (!node || !isPointwise(node.op)) return;
    const out = node.outputs[0]!;
    const { program } = node.attrs as PointwiseAttrs;
    // The latest producer first: its other operands exist by then.
    const candidates = node.inputs
      .map((t, k) => ({ t, k, p: producer.get(t) ?? -1 }))
      .filter(({ p }) => p >= 0)
      .sort((a, b) => b.p - a.p);
    for (const { t, k, p } of candidates) {
      const source = list[p];
      const slots = source?.op.epilogueBuffers;
      if (!source || slots === undefined || source.epilogue || source.outputs[0] !== t || readers.get(t) !== 1 || !sameShape(t.shape, out.shape) || !isFloat(t)) continue;
      if (node.inputs.length - 1 > slots || !movable(source, p)) continue;
      // Its other results must not be read before the chain's place, nor by the chain itself, in the dispatch that writes them.
      const others = new Set(source.outputs.slice(1));
      if (others.size && list.slice(p + 1, i + 1).some((n) => n && readsOf(n).some((r) => others.has(rootOf(r))))) continue;
      const rest = node.inputs.filter((_, j) => j !== k);
      const map = node.inputs.map((_, j) => (j === k ? 0 : j < k ? j + 1 : j));
      list[p] = undefined;
      list[i] = { ...source, outputs: [out, ...source.outputs.slice(1)], epilogue: { program: renumberOperands(program, map, node.inputs.length), inputs: rest } };
      return;
    }
  });
  return list.filter((n): n is PlannedNode => n !== undefined);
}
