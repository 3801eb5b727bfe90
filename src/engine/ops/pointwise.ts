/**
 * The table of pointwise ops: WGSL expression, float64 reference and derivative of each in one row.
 *
 * Operands broadcast as in NumPy; the result is stored as the first floating-point operand is. Chains of these are fused into one kernel, or into the
 * store of the matmul, conv2d, … that feeds them (passes.ts). To add one, add a row and a builder; tests find the row by themselves.
 */
import pointwiseShader from '../../../shaders/pointwise.wgsl';
import { BruitError } from '../errors';
import type { Tensor, TensorSpec } from '../graph';
import { defineOp, type GradRule, type LowerContext, type OpDef, type OpTests } from '../op';
import { emitEpilogue, evaluateProgram, pointwiseWidth, vectorType, type PointwiseProgram, type PointwiseRow } from '../pointwise_codegen';
import { broadcastShapes, broadcastStrides, numel, sameShape, showShape, strides, type DType, type Shape } from '../shape';
import { reshape } from './reshape';
import { sum } from './sum';

export interface PointwiseAttrs {
  readonly program: PointwiseProgram;
  readonly dtype: DType;
  /** Shape to broadcast to beyond what the operands ask for. */
  readonly shape?: Shape;
}

type Derivative = (x: readonly Tensor[], dy: Tensor, y: Tensor, consts: readonly number[]) => readonly (Tensor | undefined)[];

interface Row extends PointwiseRow {
  readonly doc: string;
  /** dL/d(operand), still of the output's shape: it is summed down to the operand's by the caller. */
  readonly derivative: Derivative | { readonly notDifferentiable: string };
  /** Domain for test data; `positive` for logarithms and roots. */
  readonly domain?: 'positive';
}

const unary = (name: string, doc: string, wgsl: (x: string) => string, reference: (x: number) => number, derivative: (x: Tensor, dy: Tensor, y: Tensor) => Tensor, flops = 1, domain?: 'positive'): Row => ({
  name,
  doc,
  arity: 1,
  flops,
  wgsl: ([x]) => wgsl(x!),
  reference: ([x]) => reference(x!),
  derivative: ([x], dy, y) => [derivative(x!, dy, y)],
  ...(domain && { domain }),
});

const noDerivative = (name: string, doc: string, arity: number, wgsl: PointwiseRow['wgsl'], reference: PointwiseRow['reference'], flops = 1): Row => ({
  name,
  doc,
  arity,
  flops,
  wgsl,
  reference,
  derivative: { notDifferentiable: `${name} appears in gradients only, and gradients of gradients are not built` },
});

const sigmoidRef = (x: number) => 1 / (1 + Math.exp(-x));

/** erf by its Taylor series below 3 and the continued fraction of erfc above: float64 precision. */
export function erfRef(x: number): number {
  const a = Math.abs(x);
  if (a < 3) {
    let term = x;
    let total = x;
    for (let n = 1; n < 100; n++) {
      term *= (-x * x) / n;
      total += term / (2 * n + 1);
    }
    return (2 / Math.sqrt(Math.PI)) * total;
  }
  let f = 0;
  for (let k = 60; k > 0; k--) f = k / 2 / (a + f);
  return Math.sign(x) * (1 - Math.exp(-a * a) / (Math.sqrt(Math.PI) * (a + f)));
}
const geluRef = (x: number) => 0.5 * x * (1 + erfRef(x / Math.SQRT2));
const geluTanhInner = (x: number) => Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3);

const rows = {
  add: {
    name: 'add',
    doc: 'a + b',
    arity: 2,
    flops: 1,
    wgsl: ([a, b]) => `${a} + ${b}`,
    reference: ([a, b]) => a! + b!,
    derivative: (_, dy) => [dy, dy],
  },
  sub: {
    name: 'sub',
    doc: 'a − b',
    arity: 2,
    flops: 1,
    wgsl: ([a, b]) => `${a} - ${b}`,
    reference: ([a, b]) => a! - b!,
    derivative: (_, dy) => [dy, scale(dy, -1)],
  },
  mul: {
    name: 'mul',
    doc: 'a · b',
    arity: 2,
    flops: 1,
    wgsl: ([a, b]) => `${a} * ${b}`,
    reference: ([a, b]) => a! * b!,
    derivative: ([a, b], dy) => [mul(dy, b!), mul(dy, a!)],
  },
  div: {
    name: 'div',
    doc: 'a / b',
    arity: 2,
    flops: 1,
    wgsl: ([a, b]) => `${a} / ${b}`,
    reference: ([a, b]) => a! / b!,
    derivative: ([, b], dy, y) => [div(dy, b!), scale(div(mul(dy, y), b!), -1)],
    domain: 'positive',
  },
  maximum: {
    name: 'maximum',
    doc: 'the larger of a and b; the gradient goes to a where they are equal',
    arity: 2,
    flops: 1,
    wgsl: ([a, b]) => `max(${a}, ${b})`,
    reference: ([a, b]) => Math.max(a!, b!),
    derivative: ([a, b], dy) => [mul(dy, lessEqual(b!, a!)), mul(dy, less(a!, b!))],
  },
  minimum: {
    name: 'minimum',
    doc: 'the smaller of a and b; the gradient goes to a where they are equal',
    arity: 2,
    flops: 1,
    wgsl: ([a, b]) => `min(${a}, ${b})`,
    reference: ([a, b]) => Math.min(a!, b!),
    derivative: ([a, b], dy) => [mul(dy, lessEqual(a!, b!)), mul(dy, less(b!, a!))],
  },
  scale: {
    name: 'scale',
    doc: 'c · x for a number c',
    arity: 1,
    flops: 1,
    wgsl: ([x], [c]) => `${x} * ${c}`,
    reference: ([x], [c]) => x! * c!,
    derivative: (_x, dy, _y, [c]) => [scale(dy, c!)],
  },
  shift: {
    name: 'shift',
    doc: 'x + c for a number c',
    arity: 1,
    flops: 1,
    wgsl: ([x], [c]) => `${x} + ${c}`,
    reference: ([x], [c]) => x! + c!,
    derivative: (_, dy) => [dy],
  },
  clamp: {
    name: 'clamp',
    doc: 'x limited to [low, high]; no gradient outside',
    arity: 1,
    flops: 2,
    wgsl: ([x], [low, high]) => `clamp(${x}, ${low}, ${high})`,
    reference: ([x], [low, high]) => Math.min(Math.max(x!, low!), high!),
    derivative: ([x], dy, y) => [mul(dy, equal(x!, y))],
  },
  cast: {
    name: 'cast',
    doc: 'x stored as another element type; arithmetic is f32',
    arity: 1,
    flops: 0,
    wgsl: ([x]) => x!,
    reference: ([x]) => x!,
    derivative: ([x], dy) => [cast(dy, x!.dtype)],
  },
  detach: {
    name: 'detach',
    doc: 'x, through which no gradient flows',
    arity: 1,
    flops: 0,
    wgsl: ([x]) => x!,
    reference: ([x]) => x!,
    derivative: () => [undefined],
  },
  where: {
    name: 'where',
    doc: 'a where condition ≠ 0, else b',
    arity: 3,
    flops: 1,
    wgsl: ([c, a, b]) => `select(${b}, ${a}, ${c} != V(0.0))`,
    reference: ([c, a, b]) => (c !== 0 ? a! : b!),
    derivative: ([c, a, b], dy) => [undefined, where(c!, dy, scale(a!, 0)), where(c!, scale(b!, 0), dy)],
  },
  less: noDerivative('less', '1 where a < b, else 0', 2, ([a, b]) => `select(V(0.0), V(1.0), ${a} < ${b})`, ([a, b]) => (a! < b! ? 1 : 0)),
  less_equal: noDerivative('less_equal', '1 where a ≤ b, else 0', 2, ([a, b]) => `select(V(0.0), V(1.0), ${a} <= ${b})`, ([a, b]) => (a! <= b! ? 1 : 0)),
  equal: noDerivative('equal', '1 where a = b, else 0', 2, ([a, b]) => `select(V(0.0), V(1.0), ${a} == ${b})`, ([a, b]) => (a === b ? 1 : 0)),
  neg: unary('neg', '−x', (x) => `-${x}`, (x) => -x, (_, dy) => scale(dy, -1)),
  abs: unary('abs', '|x|', (x) => `abs(${x})`, Math.abs, (x, dy) => mul(dy, sign(x))),
  sign: noDerivative('sign', '−1, 0 or 1', 1, ([x]) => `sign(${x})`, ([x]) => Math.sign(x!)),
  square: unary('square', 'x²', (x) => `${x} * ${x}`, (x) => x * x, (x, dy) => scale(mul(dy, x), 2)),
  sqrt: unary('sqrt', '√x', (x) => `sqrt(${x})`, Math.sqrt, (_, dy, y) => scale(div(dy, y), 0.5), 1, 'positive'),
  rsqrt: unary('rsqrt', '1/√x', (x) => `inverseSqrt(${x})`, (x) => 1 / Math.sqrt(x), (x, dy, y) => scale(div(mul(dy, y), x), -0.5), 1, 'positive'),
  exp: unary('exp', 'eˣ', (x) => `exp(${x})`, Math.exp, (_, dy, y) => mul(dy, y)),
  log: unary('log', 'natural logarithm', (x) => `log(${x})`, Math.log, (x, dy) => div(dy, x), 1, 'positive'),
  sin: unary('sin', 'sine, accurate to f32 rounding up to |x| = 10⁴', (x) => `sin_exact(${x})`, Math.sin, (x, dy) => mul(dy, cos(x))),
  cos: unary('cos', 'cosine, accurate to f32 rounding up to |x| = 10⁴', (x) => `cos_exact(${x})`, Math.cos, (x, dy) => scale(mul(dy, sin(x)), -1)),
  tanh: unary('tanh', 'hyperbolic tangent', (x) => `tanh_safe(${x})`, Math.tanh, (_, dy, y) => mul(dy, shift(scale(square(y), -1), 1)), 4),
  sigmoid: unary('sigmoid', '1/(1+e⁻ˣ)', (x) => `sigmoid(${x})`, sigmoidRef, (_, dy, y) => mul(dy, mul(y, shift(scale(y, -1), 1))), 4),
  relu: unary('relu', 'max(x, 0)', (x) => `max(${x}, V(0.0))`, (x) => Math.max(x, 0), (x, dy) => mul(dy, less(scale(x, -1), scale(x, 0)))),
  silu: unary('silu', 'x·sigmoid(x), "swish" (Elfwing et al. 2017)', (x) => `silu(${x})`, (x) => x * sigmoidRef(x), (x, dy) => mul(dy, siluGrad(x)), 5),
  silu_grad: noDerivative('silu_grad', 'd silu/dx', 1, ([x]) => `silu_grad(${x})`, ([x]) => { const s = sigmoidRef(x!); return s * (1 + x! * (1 - s)); }, 8),
  gelu: unary('gelu', 'x·Φ(x) with the exact Gaussian CDF, by erf (Hendrycks & Gimpel 2016)', (x) => `gelu(${x})`, geluRef, (x, dy) => mul(dy, geluGrad(x)), 20),
  gelu_grad: noDerivative('gelu_grad', 'd gelu/dx', 1, ([x]) => `gelu_grad(${x})`, ([x]) => 0.5 * (1 + erfRef(x! / Math.SQRT2)) + (x! * Math.exp((-x! * x!) / 2)) / Math.sqrt(2 * Math.PI), 25),
  gelu_tanh: unary('gelu_tanh', 'the tanh approximation of GELU', (x) => `gelu_tanh(${x})`, (x) => 0.5 * x * (1 + Math.tanh(geluTanhInner(x))), (x, dy) => mul(dy, geluTanhGrad(x)), 10),
  gelu_tanh_grad: noDerivative('gelu_tanh_grad', 'd gelu_tanh/dx', 1, ([x]) => `gelu_tanh_grad(${x})`, ([x]) => {
    const t = Math.tanh(geluTanhInner(x!));
    return 0.5 * (1 + t) + 0.5 * x! * (1 - t * t) * Math.sqrt(2 / Math.PI) * (1 + 3 * 0.044715 * x! * x!);
  }, 15),
  quick_gelu: unary('quick_gelu', 'x·sigmoid(1.702x), as CLIP uses', (x) => `${x} * sigmoid(V(1.702) * ${x})`, (x) => x * sigmoidRef(1.702 * x), (x, dy) => mul(dy, quickGeluGrad(x)), 6),
  quick_gelu_grad: noDerivative('quick_gelu_grad', 'd quick_gelu/dx', 1, ([x]) => `silu_grad(V(1.702) * ${x})`, ([x]) => { const z = 1.702 * x!; const s = sigmoidRef(z); return s * (1 + z * (1 - s)); }, 9),
  mish: unary('mish', 'x·tanh(ln(1+eˣ)) (Misra 2019)', (x) => `${x} * tanh_safe(log(V(1.0) + exp(min(${x}, V(30.0)))))`, (x) => x * Math.tanh(Math.log1p(Math.exp(x))), (x, dy) => {
    const t = tanh(log(shift(exp(minimumScalar(x, 30)), 1)));
    return mul(dy, add(t, mul(mul(x, sigmoid(x)), shift(scale(square(t), -1), 1))));
  }, 8),
} satisfies Record<string, Row>;

export type PointwiseName = keyof typeof rows;

/** Rows for tests and documentation. */
export const pointwiseTable: Readonly<Record<string, Row>> = rows;

const ops = new Map<string, OpDef<PointwiseAttrs>>();
for (const row of Object.values<Row>(rows)) ops.set(row.name, makeOp(row.name, row.doc, row));

/** Op of chains that the fuse pass makes. */
export const fusedPointwiseOp = makeOp('fused_pointwise', 'A chain of pointwise ops in one kernel.', undefined);

export const isPointwise = (op: OpDef<never>): boolean => op.lower === (lowerPointwise as unknown);

function makeOp(name: string, doc: string, row: Row | undefined): OpDef<PointwiseAttrs> {
  return defineOp<PointwiseAttrs>({
    name,
    doc,
    infer(inputs, { program, dtype, shape: wanted }) {
      const all = [...inputs.map((t) => t.shape), ...(wanted ? [wanted] : [])];
      const shape = broadcastShapes(...all);
      if (!shape || (wanted && !sameShape(shape, wanted))) throw new BruitError('shape', `operands ${all.map(showShape).join(', ')} do not broadcast: trailing dimensions must be equal or 1`);
      if (inputs.length !== program.operands) throw new BruitError('shape', `${inputs.length} operands for a program of ${program.operands}`);
      return [{ shape, dtype }];
    },
    lower: lowerPointwise,
    flops: (_, [out], { program }) => numel(out!.shape) * program.steps.reduce((n, s) => n + s.row.flops, 0),
    // Operands without a gradient.
    ...((name === 'where' || name === 'detach') && { integerInputs: [0] }),
    grad: row && 'notDifferentiable' in row.derivative ? row.derivative : pointwiseGrad(row),
  });
}

function lowerPointwise({ inputs, outputs, attrs, dispatch }: LowerContext<PointwiseAttrs>): void {
  const out = outputs[0]!;
  const width = pointwiseWidth(out.shape, inputs);
  const count = numel(out.shape) / width;
  dispatch({
    shader: { file: 'pointwise.wgsl', text: pointwiseShader },
    entry: 'forward',
    prologue: { V: vectorType('f32', width), Y: vectorType(out.dtype, width), WIDTH: `${width}u` },
    epilogueText: emitEpilogue(attrs.program, out.shape, inputs, { width, firstBinding: 2, fromValue: false }),
    bindings: { y: out, ...Object.fromEntries(inputs.map((t, k) => [`e${k}`, t])) },
    params: { count },
    workgroups: Math.ceil(count / 64),
  });
}

function pointwiseGrad(row: Row | undefined): GradRule<PointwiseAttrs> {
  return ({ inputs, outputs, outputGrads, attrs, needs }) => {
    if (!row) throw new BruitError('shape', 'fused_pointwise has no gradient: differentiate before passes run');
    const dy = outputGrads[0]!;
    const grads = (row.derivative as Derivative)(inputs, dy, outputs[0]!, attrs.program.steps[0]!.consts);
    return inputs.map((x, k) => (needs[k] && grads[k] ? sumTo(grads[k], x) : undefined));
  };
}

/** Sums a gradient over the dimensions along which `like` was broadcast. */
export function sumTo(g: Tensor, like: TensorSpec): Tensor {
  if (sameShape(g.shape, like.shape)) return g;
  const lead = g.shape.length - like.shape.length;
  const axes = g.shape.flatMap((d, i) => (i < lead || (like.shape[i - lead] === 1 && d !== 1) ? [i] : []));
  return reshape(axes.length ? sum(g, axes) : g, like.shape);
}

/** Results are stored as the first floating-point operand is. */
const resultType = (operands: readonly Tensor[]): DType => operands.find((t) => t.dtype === 'f32' || t.dtype === 'f16')?.dtype ?? 'f32';

function apply(name: PointwiseName, operands: readonly Tensor[], consts: readonly number[] = [], dtype: DType = resultType(operands), shape?: Shape): Tensor {
  const program: PointwiseProgram = { operands: operands.length, steps: [{ row: rows[name], args: operands.map((_, i) => i), consts }] };
  return operands[0]!.graph.add1(ops.get(name)!, operands, { program, dtype, ...(shape && { shape }) });
}

/** One application of a row by name, for tests and for activations named in configs. */
export const pointwise = apply;

export const add = (a: Tensor, b: Tensor): Tensor => apply('add', [a, b]);
export const sub = (a: Tensor, b: Tensor): Tensor => apply('sub', [a, b]);
export const mul = (a: Tensor, b: Tensor): Tensor => apply('mul', [a, b]);
export const div = (a: Tensor, b: Tensor): Tensor => apply('div', [a, b]);
export const maximum = (a: Tensor, b: Tensor): Tensor => apply('maximum', [a, b]);
export const minimum = (a: Tensor, b: Tensor): Tensor => apply('minimum', [a, b]);
/** c·x for a number c. */
export const scale = (x: Tensor, c: number): Tensor => apply('scale', [x], [c]);
/** `x · factor` repeated along its dimensions of size 1 up to `shape`. */
export const expand = (x: Tensor, shape: Shape, factor = 1): Tensor => apply('scale', [x], [factor], resultType([x]), shape);
/** x + c for a number c. */
export const shift = (x: Tensor, c: number): Tensor => apply('shift', [x], [c]);
export const clamp = (x: Tensor, low: number, high: number): Tensor => apply('clamp', [x], [low, high]);
const minimumScalar = (x: Tensor, c: number): Tensor => clamp(x, -3.0e38, c);
/** Stored as `dtype`; numbers become integers by dropping their fraction. */
export const cast = (x: Tensor, dtype: DType): Tensor => (x.dtype === dtype ? x : apply('cast', [x], [], dtype));
/** x, through which no gradient flows. */
export const detach = (x: Tensor): Tensor => apply('detach', [x]);
/** `a` where `condition` ≠ 0, else `b`. */
export const where = (condition: Tensor, a: Tensor, b: Tensor): Tensor => apply('where', [condition, a, b]);
export const less = (a: Tensor, b: Tensor): Tensor => apply('less', [a, b]);
export const lessEqual = (a: Tensor, b: Tensor): Tensor => apply('less_equal', [a, b]);
export const equal = (a: Tensor, b: Tensor): Tensor => apply('equal', [a, b]);
export const neg = (x: Tensor): Tensor => apply('neg', [x]);
export const abs = (x: Tensor): Tensor => apply('abs', [x]);
export const sign = (x: Tensor): Tensor => apply('sign', [x]);
export const square = (x: Tensor): Tensor => apply('square', [x]);
export const sqrt = (x: Tensor): Tensor => apply('sqrt', [x]);
export const rsqrt = (x: Tensor): Tensor => apply('rsqrt', [x]);
export const exp = (x: Tensor): Tensor => apply('exp', [x]);
export const log = (x: Tensor): Tensor => apply('log', [x]);
export const sin = (x: Tensor): Tensor => apply('sin', [x]);
export const cos = (x: Tensor): Tensor => apply('cos', [x]);
export const tanh = (x: Tensor): Tensor => apply('tanh', [x]);
export const sigmoid = (x: Tensor): Tensor => apply('sigmoid', [x]);
export const relu = (x: Tensor): Tensor => apply('relu', [x]);
export const silu = (x: Tensor): Tensor => apply('silu', [x]);
export const gelu = (x: Tensor): Tensor => apply('gelu', [x]);
export const geluTanh = (x: Tensor): Tensor => apply('gelu_tanh', [x]);
export const quickGelu = (x: Tensor): Tensor => apply('quick_gelu', [x]);
export const mish = (x: Tensor): Tensor => apply('mish', [x]);
const siluGrad = (x: Tensor): Tensor => apply('silu_grad', [x]);
const geluGrad = (x: Tensor): Tensor => apply('gelu_grad', [x]);
const geluTanhGrad = (x: Tensor): Tensor => apply('gelu_tanh_grad', [x]);
const quickGeluGrad = (x: Tensor): Tensor => apply('quick_gelu_grad', [x]);

const constsOf: Readonly<Record<string, readonly number[]>> = { scale: [-1.5], shift: [0.25], clamp: [-0.7, 0.9] };

/** Each row over vectors, odd sizes, scalars and every way to broadcast. */
export const tests: OpTests<PointwiseAttrs>[] = Object.values<Row>(rows).map((row) => {
  const fill = row.domain === 'positive' ? 'positive' : 'normal';
  const program: PointwiseProgram = { operands: row.arity, steps: [{ row, args: Array.from({ length: row.arity }, (_, i) => i), consts: constsOf[row.name] ?? [] }] };
  const shapes: readonly (readonly Shape[])[] = [
    [[3, 8], [3, 8], [3, 8]],
    [[5, 7], [5, 7], [5, 7]],
    [[2, 3, 4, 8], [2, 1, 1, 8], [8]],
    [[2, 3, 5], [1, 3, 1], [5]],
    [[4, 1, 8], [1], [3, 1]],
    [[1], [1], [1]],
  ];
  const tolerance = row.name.startsWith('gelu') || row.name.startsWith('quick_gelu') || row.name === 'mish' || row.name === 'tanh' ? 1e-5 : 3e-6;
  return {
    op: ops.get(row.name)!,
    reference(inputs, { program: p, dtype: _, shape }) {
      const out = shape ?? broadcastShapes(...inputs.map((t) => t.shape))!;
      const st = inputs.map((t) => broadcastStrides(t.shape, out));
      const own = strides(out);
      const y = new Float64Array(numel(out));
      for (let i = 0; i < y.length; i++) {
        const values = inputs.map((t, k) => t.data[out.reduce((at, d, a) => at + (Math.floor(i / own[a]!) % d) * st[k]![a]!, 0)]!);
        y[i] = evaluateProgram(p, values);
      }
      return [y];
    },
    cases: shapes.slice(0, row.arity === 1 ? 2 : undefined).map((s) => ({
      name: s.slice(0, row.arity).map(showShape).join(' '),
      inputs: s.slice(0, row.arity).map((shape, k) => ({ shape, fill: row.name === 'where' && k === 0 ? ({ int: 2 } as const) : fill })),
      attrs: { program, dtype: 'f32' as const },
      tolerance,
    })),
  };
});
