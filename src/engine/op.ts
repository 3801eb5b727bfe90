/**
 * What an op declares, once: shape rule, kernels, gradient, cost and documentation.
 * A file in src/engine/ops/ exports the op's builder function and, for the tests and the benchmark, `tests: OpTests`
 * (float64 reference and cases), which bundles of the engine drop.
 */
import type { PackedFormat } from './buffer_view';
import type { AdapterProfile } from './device';
import type { Graph, Node, Tensor, TensorSpec } from './graph';
import type { PointwiseProgram } from './pointwise_codegen';
import type { ShaderSource } from './shader';
import type { DType, Shape } from './shape';

/** Scratch memory of one node: exists from its first to its last dispatch. */
export interface TempTensor extends TensorSpec {
  readonly temp: true;
  readonly label: string;
}

export type Bindable = Tensor | TempTensor;

/** One compute dispatch. Bindings and uniforms go by the names in the WGSL; numbers and offsets are read from it. */
export interface DispatchSpec {
  readonly shader: ShaderSource;
  readonly entry: string;
  /** Replaces `const NAME = …;` and `alias NAME = …;` lines of the shader's prologue. */
  readonly prologue?: Readonly<Record<string, number | string | boolean>>;
  /** Values of `override` declarations. */
  readonly overrides?: Readonly<Record<string, number>>;
  /** Include files swapped for others with the same functions: `{ 'lib/load_scalar.wgsl': 'lib/load_vec4.wgsl' }`. */
  readonly includes?: Readonly<Record<string, string>>;
  /** Storage bindings by variable name. */
  readonly bindings: Readonly<Record<string, Bindable>>;
  /** Fields of the uniform `params`. */
  readonly params?: Readonly<Record<string, number>>;
  /** Number of workgroups. It is folded over x and y beyond 65,535: kernels get the flat index from `flat_workgroup` (lib/index.wgsl). */
  readonly workgroups: number;
  /** 1 or 4 where the kernel calls `epilogue` on what it stores, with V of that width (once per element of output 0): a fused chain may be put there. */
  readonly epilogueWidth?: 1 | 4;
  /** Text of the epilogue block that the op writes itself (pointwise). */
  readonly epilogueText?: string;
  /** Flops and bytes of this dispatch where the node has several and the whole cost is not its own. */
  readonly cost?: Cost;
}

export interface LowerContext<A> {
  readonly node: Node;
  readonly inputs: readonly Tensor[];
  readonly outputs: readonly Tensor[];
  readonly attrs: A;
  readonly profile: AdapterProfile;
  /** Name of the kernel variant that the caller forces (tests, tuner), if any. */
  readonly variant: string | undefined;
  /** How a parameter is packed, where it is and the op's `weightInput` says that its kernels can read that. */
  readonly packed: (t: Tensor) => PackedFormat | undefined;
  readonly temp: (label: string, shape: Shape, dtype?: DType) => TempTensor;
  readonly dispatch: (spec: DispatchSpec) => void;
}

export interface Cost {
  readonly flops: number;
  /** Least traffic: each operand read once, each result written once. */
  readonly bytes: number;
}

export interface GradContext<A> {
  readonly graph: Graph;
  readonly inputs: readonly Tensor[];
  readonly outputs: readonly Tensor[];
  /** dL/d(output i), or `undefined` where the loss does not depend on it. */
  readonly outputGrads: readonly (Tensor | undefined)[];
  readonly attrs: A;
  /** Which inputs a gradient is wanted for. */
  readonly needs: readonly boolean[];
}

/** Returns dL/d(input i) for each input that needs it. */
export type GradRule<A> = (ctx: GradContext<A>) => readonly (Tensor | undefined)[];

export interface OpDef<A extends object> {
  /** The field's name for it, snake_case, as its shader file is called. */
  readonly name: string;
  /** One paragraph: formula, shapes, layout, source. */
  readonly doc: string;
  /** Output specs from input specs; throws BruitError('shape') that says which shapes clash. */
  infer(inputs: readonly TensorSpec[], attrs: A): TensorSpec[];
  /** Emits the node's dispatches. */
  lower(ctx: LowerContext<A>): void;
  /** Floating-point operations; bytes default to all operands and results once. */
  flops(inputs: readonly TensorSpec[], outputs: readonly TensorSpec[], attrs: A): number;
  readonly grad: GradRule<A> | { readonly notDifferentiable: string };
  /** Indices of inputs that the op writes in place (optimizer state, counters). Such nodes are never removed or moved. */
  readonly mutates?: readonly number[];
  /** The output is the input's memory under another shape; no dispatch. */
  readonly view?: boolean;
  /** Names of kernel variants that tests run one by one; the first is the general one. */
  readonly variants?: readonly string[];
  /** How many more storage buffers the kernel that stores output 0 can bind in its epilogue (8 less its own); absent without an epilogue hook. */
  readonly epilogueBuffers?: number;
  /**
   * For ops with a weight that may be packed: which input that is, and whether it is a table of rows, if this application's kernels can read it.
   * Any other op gets it unpacked into f32 memory first.
   */
  weightInput?(inputs: readonly TensorSpec[], attrs: A): { readonly index: number; readonly table?: boolean } | undefined;
  /** Computes the op over a weight that lies in `parts` (the input at that index is not to be read) from applications of it to each: output channels of a product, rows of a table. */
  overParts?(inputs: readonly Tensor[], parts: readonly Tensor[], attrs: A): Tensor;
  /** Inputs that are read as integers. */
  readonly integerInputs?: readonly number[];
}

/** Chain of pointwise ops that the fuse pass put onto the store of another node. Operands 1… of the program are `inputs`. */
export interface FusedEpilogue {
  readonly program: PointwiseProgram;
  readonly inputs: readonly Tensor[];
}

/** Values for the float64 reference. */
export interface RefTensor {
  readonly shape: Shape;
  readonly data: Float64Array;
}

/** One test and benchmark case of an op. */
export interface OpCase<A extends object = object> {
  /** Why this case: `odd sizes`, `one row more than a tile`, `U-Net mid block`. */
  readonly name: string;
  readonly inputs: readonly { readonly shape: Shape; readonly dtype?: DType; readonly fill?: InputFill }[];
  readonly attrs: A;
  /** max|a−b| allowed as a multiple of max|b|; default 2e-6·√(reduction) is for the case to state. */
  readonly tolerance?: number;
  /** Skip the finite-difference check (large cases): the forward check remains. */
  readonly skipGrad?: boolean;
  /** Marks the shapes of real layers that `npm run bench` times. */
  readonly bench?: boolean;
  /** Also run with the weight packed, in every format that its shape allows. */
  readonly packed?: boolean;
}

/** Test data: standard normal unless said otherwise; `int` draws from 0..max−1; `positive` is |normal|+0.1. */
export type InputFill = 'normal' | 'positive' | 'unit' | { readonly int: number } | { readonly mean: number; readonly std: number } | { readonly values: readonly number[] };

/** Exported as `tests` by each op file. */
export interface OpTests<A extends object = object> {
  readonly op: OpDef<A>;
  /** Float64 reference of the forward op, plain loops. */
  reference(inputs: readonly RefTensor[], attrs: A): Float64Array[];
  readonly cases: readonly OpCase<A>[];
}

/** Identity helper that types an op's tests. */
export const opTests = <A extends object>(t: OpTests<A>): OpTests<A> => t;
export const defineOp = <A extends object>(op: OpDef<A>): OpDef<A> => op;
