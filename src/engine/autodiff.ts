/** Reverse-mode differentiation: appends gradient nodes to a graph, by each op's own rule. */
import { BruitError } from './errors';
import type { Node, Tensor } from './graph';
import type { GradRule } from './op';
import { add, expand } from './ops/pointwise';
import { numel, showShape } from './shape';

/**
 * dLoss/d(each of `wrt`), as new tensors of the graph. `loss` has one element.
 * A tensor that the loss does not depend on has no gradient: an error that names it.
 * Nodes made inside `graph.checkpoint` are computed a second time here instead of being kept.
 */
export function gradients(loss: Tensor, wrt: readonly Tensor[]): Tensor[] {
  const { graph } = loss;
  if (numel(loss.shape) !== 1) throw new BruitError('shape', `gradients: the loss must have one element, ${loss} has shape ${showShape(loss.shape)}`);
  const nodes = [...graph.nodes];
  const wanted = new Set(wrt);
  // Forward sweep: which tensors lead from `wrt` to somewhere.
  const depends = new Set<Tensor>(wrt);
  for (const n of nodes) if (n.inputs.some((t) => depends.has(t))) n.outputs.forEach((t) => depends.add(t));

  const grads = new Map<Tensor, Tensor>();
  const accumulate = (t: Tensor, g: Tensor) => {
    const sum = grads.get(t);
    grads.set(t, sum ? add(sum, g) : g);
  };
  accumulate(loss, expand(graph.constant('one', [1], Float32Array.of(1)), loss.shape));

  const recompute = new Recomputation(nodes);
  for (let i = nodes.length - 1; i >= 0; i--) {
    const node = nodes[i]!;
    if (!node.outputs.some((t) => grads.has(t)) || !node.inputs.some((t) => depends.has(t))) continue;
    const { grad } = node.op;
    if (typeof grad !== 'function') throw new BruitError('shape', `${node.op.name} (${node.path || 'top level'}) has no gradient: ${grad.notDifferentiable}`);
    const needs = node.inputs.map((t) => depends.has(t));
    const results = graph.scope(node.path ? `grad.${node.path}` : 'grad', () =>
      (grad as GradRule<object>)({
        graph,
        inputs: node.inputs.map((t) => recompute.value(t, node)),
        outputs: node.outputs.map((t) => recompute.value(t, node)),
        outputGrads: node.outputs.map((t) => grads.get(t)),
        attrs: node.attrs,
        needs,
      }),
    );
    node.inputs.forEach((t, k) => {
      const g = results[k];
      if (needs[k] && g) accumulate(t, g);
    });
    // Gradients of values are final once their producer was reached; only those of `wrt` are wanted later.
    for (const t of node.outputs) if (!wanted.has(t)) grads.delete(t);
  }
  return wrt.map((t) => {
    const g = grads.get(t);
    if (!g) throw new BruitError('shape', `gradients: the loss does not depend on ${t}`);
    return g;
  });
}

/** Re-emits the nodes of a checkpointed region when the backward sweep first needs one of its inner values. */
class Recomputation {
  private readonly clones = new Map<Tensor, Tensor>();
  private readonly done = new Set<number>();

  constructor(private readonly nodes: readonly Node[]) {}

  /** The tensor to read for `t` in the gradient of `reader`: a fresh copy if `t` was made inside reader's own region. */
  value(t: Tensor, reader: Node): Tensor {
    const region = t.node?.region;
    if (region === undefined || region !== reader.region) return t;
    if (!this.done.has(region)) {
      this.done.add(region);
      for (const n of this.nodes) {
        if (n.region !== region || n.op.mutates) continue;
        const inputs = n.inputs.map((x) => this.clones.get(x) ?? x);
        const { graph } = t;
        const outputs = graph.scope(`recompute.${n.path}`, () => graph.add(n.op as never, inputs, n.attrs as never));
        n.outputs.forEach((o, k) => this.clones.set(o, outputs[k]!));
      }
    }
    return this.clones.get(t) ?? t;
  }
}
