/**
 * WGSL for chains of pointwise ops, used alone (pointwise.wgsl) and as the epilogue of matmul, conv2d, ….
 *
 * A chain is a list of steps over numbered values: the operands come first, then each step's result; the last step is the result.
 * Every operand is read at the output's linear element index i, divided down to its own index along broadcast dimensions.
 */
import type { TensorSpec } from './graph';
import { broadcastStrides, numel, type DType, type Shape } from './shape';

/** A row of the pointwise table (ops/pointwise.ts), as far as code generation needs it. */
export interface PointwiseRow {
  readonly name: string;
  readonly arity: number;
  /** WGSL expression of type V (f32 or vec4<f32>); `args` are names of values, `consts` are literals of type V. */
  wgsl(args: readonly string[], consts: readonly string[]): string;
  reference(args: readonly number[], consts: readonly number[]): number;
  /** Flops per element as the benchmark counts them. */
  readonly flops: number;
}

export interface PointwiseStep {
  readonly row: PointwiseRow;
  readonly args: readonly number[];
  readonly consts: readonly number[];
}

export interface PointwiseProgram {
  /** Number of operands. */
  readonly operands: number;
  readonly steps: readonly PointwiseStep[];
}

/** An f32 literal. Values beyond f32 are an error of the caller: WGSL has no infinity. */
export function f32Literal(x: number): string {
  const s = String(Math.fround(x));
  return /[.e]/.test(s) ? `${s}f` : `${s}.0f`;
}

const scalarType: Record<DType, string> = { f32: 'f32', f16: 'f16', i32: 'i32', u32: 'u32' };

/** WGSL type of `width` neighbouring elements. */
export const vectorType = (dtype: DType, width: 1 | 4): string => (width === 4 ? `vec4<${scalarType[dtype]}>` : scalarType[dtype]);

/** Dimensions of `out` merged where every operand steps through them as through one. */
function collapse(out: Shape, operands: readonly Shape[]): { dims: number[]; strides: number[][] } {
  const all = operands.map((s) => broadcastStrides(s, out));
  const dims: number[] = [];
  const merged: number[][] = operands.map(() => []);
  for (let d = 0; d < out.length; d++) {
    const size = out[d]!;
    if (size === 1) continue;
    const last = dims.length - 1;
    const joins = last >= 0 && all.every((st, k) => (st[d] === 0 ? merged[k]![last] === 0 : merged[k]![last] === st[d]! * size));
    if (joins) {
      dims[last] = dims[last]! * size;
      all.forEach((st, k) => (merged[k]![last] = st[d]!));
    } else {
      dims.push(size);
      all.forEach((st, k) => merged[k]!.push(st[d]!));
    }
  }
  return { dims, strides: merged };
}

/** 4 where output and all operands can be read four neighbours at a time (or as one scalar for all four), else 1. */
export function pointwiseWidth(out: Shape, operands: readonly TensorSpec[]): 1 | 4 {
  if (numel(out) % 4 !== 0) return 1;
  const { dims } = collapse(out, operands.map((o) => o.shape));
  return dims.length === 0 || dims[dims.length - 1]! % 4 === 0 ? 4 : 1;
}

/**
 * Text of the epilogue block: operand bindings `e0, e1, …` from binding number `firstBinding` on, and `fn epilogue(v: V, i: u32, column: u32) -> V`,
 * `i` the element of the output and `column` its place along the last dimension.
 * With `fromValue`, operand 0 is the kernel's own value `v` and has no binding.
 */
export function emitEpilogue(
  program: PointwiseProgram,
  out: Shape,
  operands: readonly TensorSpec[],
  options: { width: 1 | 4; firstBinding: number; fromValue: boolean },
): string {
  const { width, firstBinding, fromValue } = options;
  const { dims, strides } = collapse(out, operands.map((o) => o.shape));
  const inner = dims.map((_, d) => dims.slice(d + 1).reduce((a, b) => a * b, 1));
  const lines: string[] = [];
  const body: string[] = [];
  let binding = firstBinding;
  operands.forEach((operand, k) => {
    if (fromValue && k === 0) {
      body.push('  let v0 = v;');
      return;
    }
    const st = strides[k]!;
    const last = dims.length - 1;
    const wide = width === 4 && (dims.length === 0 ? numel(operand.shape) > 1 : st[last] === 1);
    const terms: string[] = [];
    let contiguousFrom = dims.length;
    // The trailing dimensions through which the operand is contiguous need one modulo together.
    while (contiguousFrom > 0 && st[contiguousFrom - 1] === inner[contiguousFrom - 1]) contiguousFrom--;
    for (let d = 0; d < contiguousFrom; d++) {
      if (st[d] === 0) continue;
      const quotient = inner[d] === 1 ? 'i' : `i / ${inner[d]}u`;
      const index = d === 0 ? `(${quotient})` : `((${quotient}) % ${dims[d]}u)`;
      terms.push(st[d] === 1 ? index : `${index} * ${st[d]}u`);
    }
    // What repeats with every row (a bias) is read by column: no division, and the same text, so the same pipeline, for every shape.
    const repeats = terms.length === 0 && contiguousFrom > 0 && contiguousFrom === last && dims[last] === out[out.length - 1];
    const onlyRow = contiguousFrom === 0 && dims.length === 1 && dims[0] === out[out.length - 1];
    const byColumn = fromValue && (repeats || onlyRow);
    if (byColumn) terms.push('column');
    else if (contiguousFrom === 0) terms.push('i');
    else if (contiguousFrom < dims.length) terms.push(`i % ${inner[contiguousFrom - 1]}u`);
    const index = terms.length === 0 ? '0u' : terms.join(' + ');
    const name = `e${fromValue ? k - 1 : k}`;
    lines.push(`@group(0) @binding(${binding++}) var<storage, read> ${name}: array<${vectorType(operand.dtype, wide ? 4 : 1)}>;`);
    body.push(wide ? `  let v${k} = V(${name}[(${index}) / 4u]);` : `  let v${k} = V(f32(${name}[${index}]));`);
  });
  program.steps.forEach((step, s) => {
    const value = program.operands + s;
    const expression = step.row.wgsl(
      step.args.map((a) => `v${a}`),
      step.consts.map((c) => `V(${f32Literal(c)})`),
    );
    body.push(`  let v${value} = ${expression};`);
  });
  const result = program.operands + program.steps.length - 1;
  return [...lines, '', 'fn epilogue(v: V, i: u32, column: u32) -> V {', ...body, `  return v${result};`, '}'].join('\n');
}

/** Puts `inner` in place of operand `at` of `outer`; operands of the result are outer's without `at`, then inner's. */
export function composePrograms(outer: PointwiseProgram, at: number, inner: PointwiseProgram): PointwiseProgram {
  const kept = outer.operands - 1;
  const operands = kept + inner.operands;
  const innerValue = (v: number) => (v < inner.operands ? kept + v : operands + v - inner.operands);
  const innerResult = operands + inner.steps.length - 1;
  const outerValue = (v: number) =>
    v === at ? innerResult : v < outer.operands ? (v < at ? v : v - 1) : operands + inner.steps.length + v - outer.operands;
  return {
    operands,
    steps: [...inner.steps.map((s) => ({ ...s, args: s.args.map(innerValue) })), ...outer.steps.map((s) => ({ ...s, args: s.args.map(outerValue) }))],
  };
}

/** The program over fewer operands after `map[i]` gives operand i's new number (equal numbers merge). */
export function renumberOperands(program: PointwiseProgram, map: readonly number[], operands: number): PointwiseProgram {
  const value = (v: number) => (v < program.operands ? map[v]! : v - program.operands + operands);
  return { operands, steps: program.steps.map((s) => ({ ...s, args: s.args.map(value) })) };
}

/** Float64 evaluation of a program at one element. */
export function evaluateProgram(program: PointwiseProgram, operands: readonly number[]): number {
  const values = [...operands];
  for (const s of program.steps) values.push(s.row.reference(s.args.map((a) => values[a]!), s.consts));
  return values[values.length - 1]!;
}
