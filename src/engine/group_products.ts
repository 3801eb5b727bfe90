/**
 * Products of one operand by weights that lie side by side in memory (to_q, to_k and to_v of an attention) as one batched product: one dispatch with
 * three times the tiles. The weights stay parameters of their own, under their own names and with their own gradients.
 */
import type { BufferView } from './buffer_view';
import type { AdapterProfile } from './device';
import { Tensor } from './graph';
import type { OpDef } from './op';
import { matmulOp } from './ops/matmul';
import { reshapeOp } from './ops/reshape';
import type { PlannedNode } from './passes';
import { numel, sameShape } from './shape';

export interface GroupedProducts {
  readonly nodes: PlannedNode[];
  /** New leaves over several parameters, by the first of them: theirs is the memory. */
  readonly leaves: ReadonlyMap<Tensor, Tensor>;
  /** Results that are parts of one value: the byte at which each begins. */
  readonly offsets: ReadonlyMap<Tensor, number>;
}

/** A part of a value, at a multiple of its size. Only this pass makes it. */
const partOp: OpDef<object> = { ...reshapeOp, name: 'part' } as never;

/** Where in the memory of its root a tensor lies. */
export function partView(view: BufferView, grouped: GroupedProducts | undefined, t: Tensor): BufferView {
  let part = t;
  while (grouped && !grouped.offsets.has(part) && part.node?.op.view) part = part.node.inputs[0]!;
  const offset = grouped?.offsets.get(part);
  return offset ? { ...view, offset: view.offset + offset } : view;
}

const plainProduct = ({ op, attrs, inputs, epilogue }: PlannedNode): boolean =>
  (op as unknown) === matmulOp && !Object.values(attrs).includes(true) && inputs[1]!.kind === 'parameter' && inputs[1]!.shape.length === 2 && (epilogue?.inputs ?? []).every((t) => t.kind === 'parameter' && t.shape.length === 1);

/** Equal text for products that one kernel computes. */
const kernelOf = ({ inputs, epilogue, outputs }: PlannedNode): string =>
  JSON.stringify([inputs[1]!.shape, inputs[1]!.dtype, outputs[0]!.dtype, epilogue?.inputs.map((t) => [t.shape, t.dtype]), epilogue?.program.steps.map(({ row, args, consts }) => [row.name, args, consts])]);

/**
 * Runs on nodes whose epilogues are fused already.
 * @param bindings Memory that is the caller's, of leaves and values.
 */
export function groupProducts(nodes: readonly PlannedNode[], bindings: ReadonlyMap<Tensor, BufferView>, { minStorageBufferOffsetAlignment: alignment, maxStorageBufferBindingSize: limit }: AdapterProfile['limits']): GroupedProducts {
  const follows = (before: Tensor, t: Tensor): boolean => {
    const [a, b] = [bindings.get(before), bindings.get(t)];
    return a !== undefined && b !== undefined && !a.packed && !b.packed && a.buffer === b.buffer && b.offset - a.offset === before.bytes;
  };
  const parameters = ({ inputs, epilogue }: PlannedNode): Tensor[] => [inputs[1]!, ...(epilogue?.inputs ?? [])];
  const byOperand = new Map<Tensor, PlannedNode[]>();
  for (const n of nodes) {
    if (!plainProduct(n) || bindings.has(n.outputs[0]!) || n.outputs[0]!.bytes % alignment) continue;
    byOperand.set(n.inputs[0]!, [...(byOperand.get(n.inputs[0]!) ?? []), n]);
  }
  const leaves = new Map<Tensor, Tensor>();
  const offsets = new Map<Tensor, number>();
  const replaced = new Map<PlannedNode, PlannedNode[]>();
  for (const products of byOperand.values()) {
    for (let first = 0, end; first < products.length; first = end) {
      for (end = first + 1; end < products.length; end++) {
        const [before, next] = [products[end - 1]!, products[end]!];
        const largest = Math.max(next.inputs[1]!.bytes, next.outputs[0]!.bytes);
        if ((end - first + 1) * largest > limit || kernelOf(before) !== kernelOf(next) || !parameters(next).every((t, i) => follows(parameters(before)[i]!, t))) break;
      }
      const group = products.slice(first, end);
      if (group.length > 1) replace(group, { leaves, offsets, replaced });
    }
  }
  return { nodes: nodes.flatMap((n) => replaced.get(n) ?? [n]), leaves, offsets };
}

function replace(group: readonly PlannedNode[], { leaves, offsets, replaced }: { leaves: Map<Tensor, Tensor>; offsets: Map<Tensor, number>; replaced: Map<PlannedNode, PlannedNode[]> }): void {
  const [node] = group as [PlannedNode];
  const [a, b] = node.inputs as [Tensor, Tensor];
  const { graph, dtype } = a;
  const count = group.length;
  const width = b.shape[1]!;
  const rows = numel(a.shape) / b.shape[0]!;
  const leaf = (t: Tensor): Tensor => {
    const shape = t.shape.length === 2 ? [count, ...t.shape] : [count, 1, ...t.shape];
    const joint = new Tensor(graph, t.id, shape, t.dtype, undefined, 'parameter', t.name);
    leaves.set(joint, t);
    return joint;
  };
  const make = (from: PlannedNode, shape: readonly number[], of: Partial<PlannedNode>): [PlannedNode, Tensor] => {
    const outputs: Tensor[] = [];
    const { epilogue: _, ...rest } = from;
    const made = { ...rest, ...of, outputs } as PlannedNode;
    outputs.push(new Tensor(graph, from.id, shape, dtype, made, 'value', ''));
    return [made, outputs[0]!];
  };
  const [flat, operand] = sameShape(a.shape, [rows, b.shape[0]!]) ? [undefined, a] : make(node, [rows, b.shape[0]!], { op: reshapeOp as never, inputs: [a], attrs: {} });
  const { epilogue } = node;
  const [product, y] = make(node, [count, rows, width], { inputs: [operand, leaf(b)], ...(epilogue && { epilogue: { ...epilogue, inputs: epilogue.inputs.map(leaf) } }) });
  group.forEach((n, i) => {
    const part: PlannedNode = { id: n.id, op: partOp as never, path: n.path, inputs: [y], attrs: {}, outputs: n.outputs, region: n.region };
    offsets.set(n.outputs[0]!, i * n.outputs[0]!.bytes);
    replaced.set(n, i ? [part] : [...(flat ? [flat] : []), product, part]);
  });
}
