/**
 * Checks of one op case, wherever there is a device (Node, Chrome, deno): every variant and storage type against the float64 reference,
 * gradients against finite differences of the reference, with poisoned memory and a second replay.
 */
import type { PackedFormat } from '../../src/engine/buffer_view';
import type { AdapterProfile, Engine } from '../../src/engine/device';
import { gradients } from '../../src/engine/autodiff';
import { Graph, type Tensor } from '../../src/engine/graph';
import type { InputFill, OpCase, OpTests, RefTensor } from '../../src/engine/op';
import { packInto } from '../../src/engine/ops/packed';
import { add, mul } from '../../src/engine/ops/pointwise';
import { total } from '../../src/engine/ops/sum';
import { compile, type Program } from '../../src/engine/program';
import { numel, sameShape, showShape } from '../../src/engine/shape';
import { tensorUsage } from '../../src/engine/program';
import { f16ToF32, f32ToF16 } from '../../src/io/half';
import { isQuantised, pack, unpack } from '../../src/io/packed';

/** Small deterministic generator for test data (mulberry32). */
export function random(seed: number): () => number {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

export function normal(rand: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - rand())) * Math.cos(2 * Math.PI * rand());
}

function fill(n: number, how: InputFill, rand: () => number): Float64Array {
  return Float64Array.from({ length: n }, (_, i) => {
    if (how === 'normal') return normal(rand);
    if (how === 'positive') return Math.abs(normal(rand)) + 0.1;
    if (how === 'unit') return rand() * 2 - 1;
    if ('int' in how) return Math.floor(rand() * how.int);
    if ('values' in how) return how.values[i % how.values.length]!;
    return how.mean + how.std * normal(rand);
  });
}

export function hash(text: string): number {
  let h = 2166136261;
  for (const c of text) h = Math.imul(h ^ c.charCodeAt(0), 16777619);
  return h >>> 0;
}

export interface OpCaseOptions {
  /** Storage type of floating-point inputs. */
  dtype: 'f32' | 'f16';
  variant?: string | undefined;
}

const halfBits = (x: ArrayLike<number>): Uint16Array => f32ToF16(Float32Array.from(x));

function makeInputs(c: OpCase<never>, dtype: 'f32' | 'f16', seed: string): RefTensor[] {
  const rand = random(hash(seed));
  return c.inputs.map(({ shape, dtype: own, fill: how }) => {
    const data = fill(numel(shape), how ?? 'normal', rand);
    const stored = (own ?? dtype) === 'f16' ? f16ToF32(halfBits(data)) : Float32Array.from(data);
    return { shape, data: own === 'i32' || own === 'u32' ? data : Float64Array.from(stored) };
  });
}

function upload(graph: Graph, c: OpCase<never>, dtype: 'f32' | 'f16'): Tensor[] {
  return c.inputs.map(({ shape, dtype: own }, i) => graph.input(`input${i}`, shape, own ?? dtype));
}

const hostData = (t: Tensor, data: Float64Array) => (t.dtype === 'f16' ? halfBits(data) : t.dtype === 'i32' ? Int32Array.from(data) : t.dtype === 'u32' ? Uint32Array.from(data) : Float32Array.from(data));

const maxAbs = (x: ArrayLike<number>): number => Array.prototype.reduce.call(x, (m: unknown, v) => Math.max(m as number, Math.abs(v as number)), 0) as number;

/** Throws if max|a−b| > tolerance · max|b|, or on anything not finite. */
export function assertClose(what: string, actual: ArrayLike<number>, expected: ArrayLike<number>, tolerance: number): void {
  if (actual.length !== expected.length) throw new Error(`${what}: ${actual.length} values, expected ${expected.length}`);
  const bound = tolerance * Math.max(maxAbs(expected), 1e-30);
  let worst = -1;
  let at = 0;
  for (let i = 0; i < actual.length; i++) {
    const d = Math.abs(actual[i]! - expected[i]!);
    // NaN compares false with everything, so test for "not within".
    if (!(d <= worst)) {
      worst = d;
      at = i;
      if (Number.isNaN(d)) break;
    }
  }
  if (!(worst <= bound)) throw new Error(`${what}: element ${at} is ${actual[at]}, expected ${expected[at]}: |difference| ${worst} > ${bound} (${tolerance} of the largest value)`);
}

/** Forward values of one case. */
export async function checkForward(engine: Engine, suite: OpTests<never>, c: OpCase<never>, { dtype, variant }: OpCaseOptions): Promise<void> {
  const { op } = suite;
  const inputs = makeInputs(c, dtype, `${op.name}/${c.name}`);
  const graph = new Graph();
  const leaves = upload(graph, c, dtype);
  const outputs = graph.add(op, leaves, c.attrs);
  const expected = suite.reference(inputs, c.attrs);
  const check = async (program: Program, run: string) => {
    leaves.forEach((t, i) => program.write(t, hostData(t, inputs[i]!.data)));
    program.run();
    for (const [k, t] of outputs.entries()) {
      const what = `${op.name} '${c.name}' ${variant ?? ''} ${dtype} output ${k} ${showShape(t.shape)} ${run}`;
      const raw = await program.readRaw(t);
      const actual = t.dtype === 'f16' ? f16ToF32(new Uint16Array(raw)) : t.dtype === 'f32' ? new Float32Array(raw) : t.dtype === 'i32' ? new Int32Array(raw) : new Uint32Array(raw);
      // f16 results are rounded to 11 bits when stored.
      assertClose(what, actual, expected[k]!, t.dtype === 'f16' ? 1e-3 : (c.tolerance ?? 3e-6));
    }
  };
  const build = () => compile(engine, graph, { outputs, poison: true, ...(variant && { variants: { [op.name]: variant } }) });
  const program = await build();
  try {
    ranMatrices(program, variant);
    await check(program, 'run 0');
    // A second replay catches kernels that rely on fresh memory.
    await check(program, 'run 1');
  } finally {
    program.destroy();
  }
  if (isLarge(c)) return;
  const folded = await withWorkgroupLimit(engine, 3, build);
  try {
    await check(folded, 'at most 3 workgroups a dimension');
  } finally {
    folded.destroy();
  }
}

/**
 * Compiles as for a device of fewer workgroups a dimension, with the same pipelines: dispatches fold over x and y, and the last
 * row runs workgroups that have nothing to do, without the size that 65,535 workgroups take.
 */
async function withWorkgroupLimit<T>(engine: Engine, limit: number, body: () => Promise<T>): Promise<T> {
  const limits: { maxComputeWorkgroupsPerDimension: number } = engine.profile.limits;
  const real = limits.maxComputeWorkgroupsPerDimension;
  limits.maxComputeWorkgroupsPerDimension = limit;
  try {
    return await body();
  } finally {
    limits.maxComputeWorkgroupsPerDimension = real;
  }
}

/** Real layers' shapes, and what is beyond a limit. */
const isLarge = (c: OpCase<never>): boolean => c.bench === true || c.inputs.reduce((n, { shape }) => n + numel(shape), 0) >= 2 ** 17;

/** Subgroup matrices give way to other kernels for operands that they are not made for, and then this tests one of those. */
function ranMatrices({ steps }: Program, variant: string | undefined): void {
  if (variant === 'subgroup_matrix' && !steps.some(({ info }) => info.file.endsWith('_subgroup_matrix.wgsl'))) throw new Error(`${steps[0]!.node.op.name} did not run in subgroup matrices`);
}

/** Gradients of a random linear function of the outputs, along random directions and single elements. */
export async function checkGradients(engine: Engine, suite: OpTests<never>, c: OpCase<never>): Promise<void> {
  const { op } = suite;
  const inputs = makeInputs(c, 'f32', `${op.name}/${c.name}`);
  const graph = new Graph();
  const leaves = upload(graph, c, 'f32');
  const outputs = graph.add(op, leaves, c.attrs);
  const rand = random(hash(`${op.name}/${c.name}/directions`));
  const weights = outputs.map((t) => fill(numel(t.shape), 'normal', rand).map(Math.fround));
  const loss = outputs.map((t, k) => total(mul(t, graph.constant(`weight${k}`, t.shape, Float32Array.from(weights[k]!))))).reduce(add);
  const wanted = leaves.flatMap((t, i) => (t.dtype === 'f32' && !op.integerInputs?.includes(i) ? [i] : []));
  const grads = gradients(loss, wanted.map((i) => leaves[i]!));
  const program = await compile(engine, graph, { outputs: grads, poison: true });
  try {
    leaves.forEach((t, i) => program.write(t, hostData(t, inputs[i]!.data)));
    program.run();
    const lossAt = (x: readonly RefTensor[]) => suite.reference(x, c.attrs).reduce((sum, y, k) => sum + y.reduce((s, v, e) => s + v * weights[k]![e]!, 0), 0);
    for (const [w, i] of wanted.entries()) {
      if (!sameShape(grads[w]!.shape, leaves[i]!.shape)) throw new Error(`${op.name} '${c.name}': gradient of input ${i} has shape ${showShape(grads[w]!.shape)}, the input ${showShape(leaves[i]!.shape)}`);
      const g = await program.read(grads[w]!);
      const n = g.length;
      const norm = Math.sqrt(g.reduce((s, v) => s + v * v, 0));
      const directions: Float64Array[] = [fill(n, 'normal', rand), fill(n, 'normal', rand)];
      for (let e = 0; e < Math.min(6, n); e++) {
        const unit = new Float64Array(n);
        unit[Math.floor(rand() * n)] = 1;
        directions.push(unit);
      }
      for (const d of directions) {
        const h = 1e-5;
        const at = (s: number) => inputs.map((x, j) => (j === i ? { shape: x.shape, data: x.data.map((v, e) => v + s * h * d[e]!) } : x));
        const numeric = (lossAt(at(1)) - lossAt(at(-1))) / (2 * h);
        const analytic = g.reduce((s, v, e) => s + v * d[e]!, 0);
        // f32 rounding of the kernels, as a share of the whole gradient; finite differences in float64 are far finer.
        const bound = 2e-4 * Math.max(norm, 1e-6);
        if (!(Math.abs(numeric - analytic) <= bound)) throw new Error(`${op.name} '${c.name}': gradient of input ${i}: ${analytic}, finite differences ${numeric}, bound ${bound}`);
      }
    }
  } finally {
    program.destroy();
  }
}

/** Formats in which a case's weight can be packed. */
function packedFormats({ op }: OpTests<never>, c: OpCase<never>): PackedFormat[] {
  const weight = c.packed && op.weightInput?.(c.inputs.map(({ shape, dtype = 'f32' }) => ({ shape, dtype })), c.attrs);
  if (!weight) return [];
  const channels = c.inputs[weight.index]!.shape.slice(weight.table ? -1 : -2);
  return (['f16', 'bf16', 'int8', 'int4'] as const).filter((format) => !isQuantised(format) || channels.every((d) => d % 4 === 0));
}

/** Forward values of one case with its weight packed, against the reference on the numbers that the packed words stand for. */
export async function checkPacked(engine: Engine, suite: OpTests<never>, c: OpCase<never>, format: PackedFormat, { dtype, variant }: OpCaseOptions): Promise<void> {
  const { op } = suite;
  const inputs = makeInputs(c, dtype, `${op.name}/${c.name}`);
  const graph = new Graph();
  const leaves = upload(graph, c, dtype);
  const { index, table = false } = op.weightInput!(leaves, c.attrs)!;
  const { shape, data } = inputs[index]!;
  const columns = table ? 1 : shape.at(-1)!;
  const words = pack(format, Float32Array.from(data), columns);
  inputs[index] = { shape, data: Float64Array.from(unpack(format, words, data.length, columns)) };
  leaves[index] = graph.parameter('weight', shape);
  const buffer = engine.createBuffer('weight', Math.ceil(words.byteLength / 16) * 16, tensorUsage);
  engine.device.queue.writeBuffer(buffer, 0, words);
  const [output] = graph.add(op, leaves, c.attrs);
  try {
    const bindings = new Map([[leaves[index], { buffer, offset: 0, packed: { format, bytes: words.byteLength, table } }]]);
    const program = await compile(engine, graph, { outputs: [output!], bindings, poison: true, ...(variant && { variants: { [op.name]: variant } }) });
    leaves.forEach((t, i) => i !== index && program.write(t, hostData(t, inputs[i]!.data)));
    program.run();
    // Read where they lie, or this tests another kernel.
    if (program.steps.some(({ node }) => node.op.name === 'unpack')) throw new Error(`${op.name} does not read ${format} itself`);
    ranMatrices(program, variant);
    const raw = await program.readRaw(output!);
    const half = output!.dtype === 'f16';
    assertClose(`${op.name} '${c.name}' ${variant ?? ''} ${dtype} with ${format} weights`, half ? f16ToF32(new Uint16Array(raw)) : new Float32Array(raw), suite.reference(inputs, c.attrs)[0]!, half ? 1e-3 : (c.tolerance ?? 3e-6));
    program.destroy();
  } finally {
    engine.destroyBuffer(buffer);
  }
}

/** Packed numbers read by an op without kernels for them, and packed again on the GPU, in every format and shape of packing. */
export function packingChecks(): OpCheck[] {
  const kinds = { matrix: [71, 12], table: [5, 44], 'odd matrix': [9, 5] } as const;
  return (['f16', 'bf16', 'int8', 'int4'] as const).flatMap((format) =>
    (Object.keys(kinds) as (keyof typeof kinds)[]).filter((kind) => kind !== 'odd matrix' || !isQuantised(format)).map((kind) => ({
      name: `packed weights · ${format} · ${kind} unpacked and packed again`,
      run: (engine: Engine) => checkPacking(engine, format, kinds[kind], kind === 'table'),
    })),
  );
}

async function checkPacking(engine: Engine, format: PackedFormat, shape: readonly [number, number], table: boolean): Promise<void> {
  const n = numel(shape);
  const columns = table ? 1 : shape[1];
  const words = pack(format, Float32Array.from(fill(n, 'normal', random(7))), columns);
  const expected = unpack(format, words, n, columns);
  const buffers = [words, new Uint32Array(words.length)].map((data) => {
    const buffer = engine.createBuffer('packed', Math.ceil(words.byteLength / 16) * 16, tensorUsage);
    engine.device.queue.writeBuffer(buffer, 0, data);
    return buffer;
  });
  const graph = new Graph();
  const w = graph.parameter('w', shape);
  const copy = graph.parameter('copy', shape);
  const x = graph.input('x', shape);
  const y = add(w, x);
  packInto(copy, y, table);
  try {
    const packed = { format, bytes: words.byteLength, table };
    const program = await compile(engine, graph, { outputs: [y], bindings: new Map([w, copy].map((t, i) => [t, { buffer: buffers[i]!, offset: 0, packed }])), poison: true });
    program.write(x, new Float32Array(n));
    program.run();
    assertClose(`${format} unpacked`, await program.read(y), expected, 0);
    assertClose(`${format} packed again`, unpack(format, new Uint32Array(await engine.readBuffer({ buffer: buffers[1]!, offset: 0 }, words.byteLength)), n, columns), expected, 1e-6);
    program.destroy();
  } finally {
    for (const buffer of buffers) engine.destroyBuffer(buffer);
  }
}

/** One check of one case. */
export interface OpCheck {
  readonly name: string;
  run(engine: Engine): Promise<void>;
  /** Why it cannot run on this device. */
  readonly skip?: string;
}

export interface OpCheckOptions {
  /** The device stores f16. */
  readonly f16: boolean;
  readonly subgroupMatrix?: AdapterProfile['subgroupMatrix'];
  /** Only so many of an op's small cases, spread over its list; the first `inDepth` of them with gradients and all variants (the further ones in f16 alone, where there is f16). */
  readonly sample?: { readonly cases: number; readonly inDepth: number };
}

/**
 * All checks of an op's cases. Small cases run every variant. Large ones run the variant that the adapter would get: a software adapter takes
 * up to a minute for a kernel made for another kind, whose tile edges the small cases cross already.
 */
export function opChecks(suite: OpTests<never>, { f16, subgroupMatrix, sample }: OpCheckOptions): OpCheck[] {
  const { op } = suite;
  const small = suite.cases.filter((c) => !isLarge(c));
  // Storage types of operands that the device has matrices for.
  const matrixTypes = (['f32', 'f16'] as const).filter((dtype) => subgroupMatrix?.shapes.some(({ component }) => component === 'f32' || component === dtype));
  const cases = sample ? small.filter((_, i) => i % Math.ceil(small.length / sample.cases) === 0) : suite.cases;
  return cases.flatMap((c, i) => {
    const inDepth = !sample || i < sample.inDepth;
    const variants = op.variants === undefined || isLarge(c) ? [undefined] : inDepth ? op.variants : op.variants.slice(0, 1);
    const types = (variant: string | undefined): readonly ('f32' | 'f16')[] => (variant === 'subgroup_matrix' ? matrixTypes : !f16 || !inDepth ? ['f32'] : sample && variant !== variants[0] ? ['f16'] : ['f32', 'f16']);
    const checks: OpCheck[] = variants.flatMap((variant) =>
      types(variant).map((dtype) => ({
        name: `${op.name} · ${c.name}${variant ? ` · ${variant}` : ''} · ${dtype}`,
        run: (engine) => checkForward(engine, suite, c, { dtype, variant }),
      })),
    );
    if (!matrixTypes.length && op.variants?.includes('subgroup_matrix') && variants.length > 1) checks.push({ name: `${op.name} · ${c.name} · subgroup_matrix`, skip: 'needs chromium-experimental-subgroup-matrix', run: () => Promise.resolve() });
    if (!sample) checks.push(...packedChecks(suite, c, matrixTypes.includes('f16')));
    if (inDepth && typeof op.grad === 'function' && !c.skipGrad) checks.push({ name: `${op.name} · ${c.name} · gradient`, run: (engine) => checkGradients(engine, suite, c) });
    return checks;
  }).concat(sample ? packedChecks(suite, suite.cases.find((c) => packedFormats(suite, c).length === 4), false, true) : []);
}

/** Every format with every variant, or (`few`) each format with another one; f16 in subgroup matrices, if the device has them, with f16 activations. */
function packedChecks(suite: OpTests<never>, c: OpCase<never> | undefined, matrices: boolean, few = false): OpCheck[] {
  const variants = suite.op.variants?.filter((v) => v !== 'subgroup_matrix') ?? [undefined];
  const check = (format: PackedFormat, variant: string | undefined, dtype: 'f32' | 'f16' = 'f32'): OpCheck => ({
    name: `${suite.op.name} · ${c!.name}${variant ? ` · ${variant}` : ''} · ${format} weights`,
    run: (engine) => checkPacked(engine, suite, c!, format, { dtype, variant }),
  });
  const formats = c ? packedFormats(suite, c) : [];
  return [
    ...formats.flatMap((format, i) => (few ? [variants[i % variants.length]] : variants).map((variant) => check(format, variant))),
    ...(matrices && formats.includes('f16') && suite.op.variants?.includes('subgroup_matrix') ? [check('f16', 'subgroup_matrix', 'f16')] : []),
  ];
}
