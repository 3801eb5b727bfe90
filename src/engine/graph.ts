/**
 * The graph that model code builds: nodes in execution order, tensors in single assignment.
 *
 * Building a node infers its output shapes at once, so a wrong shape is an error at the line that caused it, with the layer's path.
 * Nothing here touches a device; `compile` (program.ts) turns a graph into a recorded GPU program.
 */
import { BruitError } from './errors';
import type { OpDef } from './op';
import { dtypeBytes, numel, showShape, type DType, type Shape } from './shape';

export interface TensorSpec {
  readonly shape: Shape;
  readonly dtype: DType;
}

/**
 * What a tensor without a producer is:
 * `input` is written by the host before a run, `parameter` is a weight that the caller binds, `state` lives on the GPU from run to run
 * (ops may mutate it), `constant` is uploaded once when the graph is compiled.
 */
export type LeafKind = 'input' | 'parameter' | 'state' | 'constant';

export type HostData = Float32Array | Int32Array | Uint32Array;

/** One value of the graph. Read-only; ops make new ones. */
export class Tensor implements TensorSpec {
  constructor(
    readonly graph: Graph,
    readonly id: number,
    readonly shape: Shape,
    readonly dtype: DType,
    /** The node that computes it; `undefined` for leaves. */
    readonly node: Node | undefined,
    readonly kind: LeafKind | 'value',
    readonly name: string,
    /** Contents of a constant, or initial contents of a state. */
    readonly data?: HostData,
  ) {}

  get bytes(): number {
    return numel(this.shape) * dtypeBytes[this.dtype];
  }

  toString(): string {
    return `%${this.id}:${this.dtype}${showShape(this.shape)}${this.name ? ` '${this.name}'` : ''}`;
  }
}

/** One application of an op. */
export interface Node {
  readonly id: number;
  // Attributes differ by op; OpDef<A> restores the type where an op reads its own.
  readonly op: OpDef<never>;
  readonly path: string;
  readonly inputs: readonly Tensor[];
  readonly attrs: object;
  readonly outputs: readonly Tensor[];
  /** Region of recomputation that the node belongs to (see {@link Graph.checkpoint}). */
  readonly region: number | undefined;
}

export class Graph {
  readonly nodes: Node[] = [];
  readonly leaves: Tensor[] = [];
  private ids = 0;
  private readonly scopes: string[] = [];
  private region: number | undefined;
  private regions = 0;

  /** Dotted path of the layer being built, as in the checkpoint: `down_blocks.0.resnets.1`. */
  get path(): string {
    return this.scopes.join('.');
  }

  /** Runs `build` with `name` appended to the layer path. */
  scope<T>(name: string, build: () => T): T {
    this.scopes.push(name);
    try {
      return build();
    } finally {
      this.scopes.pop();
    }
  }

  /**
   * Gradient checkpointing (Chen et al. 2016): values made inside `build` are not kept for the backward pass but computed a second time there.
   * Costs one more forward pass of the block; the saved set shrinks to the block's inputs.
   */
  checkpoint<T>(build: () => T): T {
    if (this.region !== undefined) return build();
    this.region = this.regions++;
    try {
      return build();
    } finally {
      this.region = undefined;
    }
  }

  private leaf(kind: LeafKind, name: string, shape: Shape, dtype: DType, data?: HostData): Tensor {
    for (const d of shape) {
      if (!Number.isInteger(d) || d < 1) throw new BruitError('shape', `${kind} '${name}': shape ${showShape(shape)} must hold integers of at least 1`);
    }
    if (data && data.length !== numel(shape)) {
      throw new BruitError('shape', `${kind} '${name}': ${data.length} numbers do not fill shape ${showShape(shape)}`);
    }
    const t = new Tensor(this, this.ids++, shape, dtype, undefined, kind, name, data);
    this.leaves.push(t);
    return t;
  }

  /** A tensor that the host writes with `program.write` before runs. */
  input(name: string, shape: Shape, dtype: DType = 'f32'): Tensor {
    return this.leaf('input', name, shape, dtype);
  }

  /** A weight; `compile` needs a buffer for it in its `bindings`. */
  parameter(name: string, shape: Shape, dtype: DType = 'f32'): Tensor {
    return this.leaf('parameter', name, shape, dtype);
  }

  /** A tensor that keeps its contents from run to run and that ops may mutate; starts as `data`, or zeros. */
  state(name: string, shape: Shape, dtype: DType = 'f32', data?: HostData): Tensor {
    return this.leaf('state', name, shape, dtype, data);
  }

  /** Host data uploaded once at compile time. */
  constant(name: string, shape: Shape, data: HostData): Tensor {
    const dtype = data instanceof Float32Array ? 'f32' : data instanceof Int32Array ? 'i32' : 'u32';
    return this.leaf('constant', name, shape, dtype, data);
  }

  /** Appends a node; the op's shape rule runs now and its error is completed with the layer path. */
  add<A extends object>(op: OpDef<A>, inputs: readonly Tensor[], attrs: A, name = ''): Tensor[] {
    for (const t of inputs) {
      if (t.graph !== this) throw new BruitError('shape', `${op.name} (${this.path || 'top level'}): ${t} belongs to another graph`);
    }
    let specs: TensorSpec[];
    try {
      specs = op.infer(inputs, attrs);
    } catch (e) {
      if (!(e instanceof BruitError)) throw e;
      // Small bundles leave the ops' own words out (scripts/sampling_plugin.mjs).
      throw new BruitError(e.code, `${op.name} (${this.path || 'top level'}): ${e.message || `operands ${inputs.join(', ')} do not fit`}`, { cause: e });
    }
    const outputs: Tensor[] = [];
    const node: Node = { id: this.ids++, op: op as unknown as OpDef<never>, path: this.path, inputs, attrs, outputs, region: this.region };
    for (const s of specs) outputs.push(new Tensor(this, this.ids++, s.shape, s.dtype, node, 'value', name));
    this.nodes.push(node);
    return outputs;
  }

  /** {@link add} for ops with one output. */
  add1<A extends object>(op: OpDef<A>, inputs: readonly Tensor[], attrs: A, name = ''): Tensor {
    return this.add(op, inputs, attrs, name)[0]!;
  }

  /** Nodes as text, one a line: `%7 = conv2d(%1, %2) down_blocks.0…`. */
  toString(): string {
    return printNodes(this.nodes);
  }
}

export function printNodes(nodes: readonly Node[]): string {
  return nodes
    .map((n) => `${n.outputs.map(String).join(', ')} = ${n.op.name}(${n.inputs.map((t) => `%${t.id}`).join(', ')})  ${n.path}`)
    .join('\n');
}
