/** Weights that do not lie in memory as the graph says: packed, or in parts. Rewrites what reads them; the graph stays as the model built it. */
import type { BufferView } from './buffer_view';
import { BruitError } from './errors';
import type { Graph, Node, Tensor } from './graph';
import type { OpDef } from './op';
import { packedInto, unpack } from './ops/packed';

/**
 * The graph's nodes, each reading its parameters as they are stored. Ops with kernels for packed weights (`weightInput`) read them so; for all others
 * they are unpacked before. Ops over a weight in parts become applications to each part and their combination (`overParts`).
 * @param bound Memory of leaves; the parts of split parameters are added to it.
 * @throws BruitError `limit` where an op must have the whole of a split parameter, `input` where it writes a packed one.
 */
export function readStored(graph: Graph, bound: Map<Tensor, BufferView>): readonly Node[] {
  if (![...bound.values()].some((v) => v.packed ?? v.parts)) return graph.nodes;
  const nodes: Node[] = [];
  const partsOf = new Map<Tensor, Tensor[]>();
  const visit = (node: Node): void => {
    const op = node.op as unknown as OpDef<object>;
    const where = `${op.name} (${node.path || 'top level'})`;
    const inputs = [...node.inputs];
    for (const [i, t] of node.inputs.entries()) {
      const { packed, parts } = bound.get(t) ?? {};
      if (!packed && !parts) continue;
      const weight = op.weightInput?.(node.inputs, node.attrs);
      const isWeight = weight?.index === i;
      if (parts) {
        if (!isWeight || !op.overParts) throw new BruitError('limit', `${where}: ${t} takes more than this device binds at once and lies in ${parts.length} parts, which ${op.name} cannot read: store it in a smaller format (f16, int8, int4)`);
        const tensors = partsOf.get(t) ?? apart(graph, '', () => parts.map(({ shape, view }, k) => {
          const part = graph.parameter(`${t.name} (part ${k + 1} of ${parts.length})`, shape);
          bound.set(part, view);
          return part;
        })).value;
        partsOf.set(t, tensors);
        const over = apart(graph, node.path, () => op.overParts!(node.inputs, tensors, node.attrs));
        // The last of the new nodes makes what the old one made.
        over.nodes.forEach((n) => visit(n.outputs[0] === over.value ? { ...n, outputs: node.outputs } : n));
        return;
      }
      if (op.mutates?.includes(i)) {
        if ((op as unknown) !== packedInto) throw new BruitError('input', `${where}: ${t} is packed as ${packed!.format} and cannot be written by this op; training needs f32 weights`);
      } else if (!isWeight || !reads(t, packed!, weight.table === true)) {
        const plain = apart(graph, node.path, () => unpack(t, packed!.table));
        nodes.push(...plain.nodes);
        inputs[i] = plain.value;
      }
    }
    nodes.push({ ...node, inputs });
  };
  graph.nodes.forEach(visit);
  return nodes;
}

/** Kernels read blocks of levels four by four, in the order in which they were packed; halves lie alike in tables and matrices. */
function reads({ shape }: Tensor, { format, table }: NonNullable<BufferView['packed']>, asTable: boolean): boolean {
  return format === 'f16' || format === 'bf16' || (table === asTable && (table || shape.slice(-2).every((d) => d % 4 === 0)));
}

/** What `build` adds to the graph, taken out of it again. */
function apart<T>(graph: Graph, path: string, build: () => T): { readonly nodes: Node[]; readonly value: T } {
  const [nodes, leaves] = [graph.nodes.length, graph.leaves.length];
  const value = path ? graph.scope(path, build) : build();
  graph.leaves.length = leaves;
  return { nodes: graph.nodes.splice(nodes), value };
}

