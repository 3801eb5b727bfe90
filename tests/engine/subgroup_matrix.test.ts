/**
 * Products in subgroup matrices: how tiles are laid out on hardware of all kinds, the kernels themselves in ordinary WGSL in place of the matrices (on every
 * adapter, with fragments of shapes that are not at hand), and with the matrices where the adapter has them.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { WgslReflect } from 'wgsl_reflect/wgsl_reflect.module.js';
import conv2dShader from '../../shaders/conv2d_subgroup_matrix.wgsl';
import matmulShader from '../../shaders/matmul_subgroup_matrix.wgsl';
import { gradients } from '../../src/engine/autodiff';
import { Engine, type AdapterProfile, type SubgroupMatrix } from '../../src/engine/device';
import { Graph, type Tensor } from '../../src/engine/graph';
import { conv2d } from '../../src/engine/ops/conv2d';
import { matmul } from '../../src/engine/ops/matmul';
import { add, mul, silu } from '../../src/engine/ops/pointwise';
import { matrixTiles, type MatrixTile } from '../../src/engine/ops/subgroup_matrix';
import { total } from '../../src/engine/ops/sum';
import { compile } from '../../src/engine/program';
import { reflectable, specialise } from '../../src/engine/shader';
import { numel } from '../../src/engine/shape';
import { tune } from '../../src/engine/tune';
import { f16ToF32, f32ToF16 } from '../../src/io/half';
import { Parameters, WeightStore } from '../../src/model/parameters';
import { parseUNet2DConfig, unet2d, unet2dInputs } from '../../src/model/unet2d';
import { defaultProfile } from '../../src/pipelines/memory';
import { testDevice } from '../helpers/device';
import { assertClose, normal, random } from '../helpers/op_suite';

const half = (m: number, n: number, k: number) => ({ component: 'f16', m, n, k }) as const;
/** As drivers list them. */
const hardware: Record<string, SubgroupMatrix> = {
  'NVIDIA': { lanes: 32, shapes: [half(16, 16, 16), half(16, 8, 16), half(16, 8, 8)] },
  'NVIDIA, narrow fragments': { lanes: 32, shapes: [half(16, 8, 16)] },
  'AMD, waves of 64': { lanes: 64, shapes: [half(16, 16, 16)] },
  'Intel': { lanes: 32, shapes: [half(8, 16, 16)] },
  'Apple': { lanes: 32, shapes: [{ component: 'f32', m: 8, n: 8, k: 8 }] },
  'llvmpipe': { lanes: 8, shapes: [half(8, 8, 8)] },
  'subgroups of 128': { lanes: 128, shapes: [half(64, 32, 16), half(32, 32, 16)] },
};
const sizes = { m: 640, n: 640, k: 640 };
const halves = { left: 'f16', right: 'f16', packed: undefined } as const;

/** Constants of a specialised shader, in the order in which they are declared, and bytes of its workgroup memory. */
function measure(text: string): { numbers: Record<string, number>; bytes: number } {
  const code = text.replace(/\/\/.*$/gm, '');
  const numbers: Record<string, number> = {};
  // Sums of products and quotients of integers, whose only brackets are around a sum.
  const value = (expression: string): number => {
    const inner = /\(([^()]*)\)/.exec(expression);
    if (inner) return value(expression.replace(inner[0], `${value(inner[1]!)}u`));
    const terms = expression.split(/(?= [+-] )/).map((term) => {
      const [first, ...rest] = term.replace(/^ [+-] /, '').split(/ (?=[*/] )/);
      const number = (factor: string) => (/^\d+u$/.test(factor) ? parseInt(factor) : numbers[factor]!);
      const product = rest.reduce((x, factor) => (factor.startsWith('/') ? Math.floor(x / number(factor.slice(2))) : x * number(factor.slice(2))), number(first!));
      return term.startsWith(' - ') ? -product : product;
    });
    return terms.reduce((x, y) => x + y);
  };
  for (const [, name, expression] of code.matchAll(/^const (\w+) = ([\w\s+*/()-]+);/gm)) if (/\d+u|[A-Z]{3}/.test(expression!) && !/^(TRANSPOSE|GRADIENT)/.test(expression!)) numbers[name!] = value(expression!);
  const component = /alias Component = (\w+);/.exec(code)![1];
  let bytes = 0;
  for (const [, type, length] of code.matchAll(/var<workgroup> \w+: array<(\w+), ([^>]*)>;/g)) bytes += value(length!) * ((type === 'Component' ? component : type) === 'f16' ? 2 : 4);
  return { numbers, bytes };
}

describe.each(Object.entries(hardware))('%s', (_, subgroupMatrix) => {
  for (const kib of [16, 32, 64]) {
    const profile: AdapterProfile = { ...defaultProfile, f16: true, subgroups: true, subgroupMatrix, limits: { ...defaultProfile.limits, maxComputeWorkgroupStorageSize: 1024 * kib } };
    test(`tiles within ${kib} KiB of workgroup memory, whole fragments and subgroups`, () => {
      const tiles = matrixTiles(profile, 'subgroup_matrix', { ...halves, ...sizes })!;
      expect(tiles[0]!.rows).toBe(64);
      for (const tile of tiles) {
        for (const [file, shader] of [['matmul_subgroup_matrix.wgsl', matmulShader], ['conv2d_subgroup_matrix.wgsl', conv2dShader]] as const) {
          const text = specialise({ file, text: shader }, { prologue: tile.prologue });
          expect(text).toMatch(/^enable chromium_experimental_subgroup_matrix;\n/);
          expect(text).toMatch(/^enable subgroups;$/m);
          const { numbers, bytes } = measure(text);
          expect(bytes).toBeGreaterThan(0);
          expect(bytes).toBeLessThanOrEqual(1024 * kib);
          expect(numbers.LANES! % subgroupMatrix.lanes).toBe(0);
          expect(numbers.LANES!).toBe(numbers.SUBGROUPS_M! * numbers.SUBGROUPS_N! * subgroupMatrix.lanes);
          expect(numbers.LANES!).toBeLessThanOrEqual(profile.limits.maxComputeInvocationsPerWorkgroup);
          expect([numbers.TILE_M, numbers.TILE_N]).toEqual([tile.rows, tile.columns]);
          expect(numbers.STAGE_K! % numbers.FRAGMENT_K!).toBe(0);
          expect(subgroupMatrix.shapes).toContainEqual(expect.objectContaining({ m: numbers.FRAGMENT_M, n: numbers.FRAGMENT_N, k: numbers.FRAGMENT_K }));
          const [entry] = new WgslReflect(reflectable(text)).entry.compute;
          expect(entry!.resources.map(({ name }) => name).sort()).toEqual(file.startsWith('matmul') ? ['a', 'params', 'w', 'y'] : ['params', 'w', 'x', 'y']);
        }
      }
    });
  }
});

describe('numbers that the graph has in f32 are not rounded', () => {
  const profileOf = (name: string, kind: 'gpu' | 'software' = 'gpu'): AdapterProfile => ({ ...defaultProfile, kind, subgroupMatrix: hardware[name] });
  const component = (tiles: readonly MatrixTile[] | undefined) => tiles?.[0]!.prologue.Component;
  test('fragments of f16 for operands stored in it alone', () => {
    for (const [left, right, packed, expected] of [
      ['f16', 'f16', undefined, 'f16'],
      ['f16', 'f32', 'f16', 'f16'],
      ['f16', 'f32', undefined, undefined],
      ['f32', 'f16', undefined, undefined],
      ['f32', 'f32', undefined, undefined],
      ['f32', 'f32', 'f16', undefined],
      ['f16', 'f32', 'bf16', undefined],
      ['f16', 'f32', 'int8', undefined],
    ] as const) {
      expect(component(matrixTiles(profileOf('NVIDIA'), 'subgroup_matrix', { left, right, packed, ...sizes }))).toBe(expected);
      expect(component(matrixTiles(profileOf('Apple'), 'subgroup_matrix', { left, right, packed, ...sizes }))).toBe('f32');
    }
  });
  test('GPUs take f16 fragments untuned, for products that fill them; software adapters none', () => {
    expect(component(matrixTiles(profileOf('NVIDIA'), undefined, { ...halves, ...sizes }))).toBe('f16');
    expect(matrixTiles(profileOf('NVIDIA'), undefined, { ...halves, ...sizes, m: 4 })).toBeUndefined();
    expect(matrixTiles(profileOf('NVIDIA'), 'tiled', { ...halves, ...sizes })).toBeUndefined();
    expect(matrixTiles(profileOf('Apple'), undefined, { ...halves, ...sizes })).toBeUndefined();
    expect(matrixTiles(profileOf('llvmpipe', 'software'), undefined, { ...halves, ...sizes })).toBeUndefined();
  });
  test('nothing without the feature', () => {
    expect(matrixTiles(defaultProfile, 'subgroup_matrix', { ...halves, ...sizes })).toBeUndefined();
  });
  test('nor where the compiler does not know them', async () => {
    const plain = await testDevice({ limits: 'default' });
    const configs = [{ componentType: 'f16', resultComponentType: 'f32', M: 8, N: 8, K: 8 }];
    const device = new Proxy(plain, {
      get(target, name) {
        if (name === 'features') return new Set(['shader-f16', 'subgroups', 'chromium-experimental-subgroup-matrix']);
        if (name === 'adapterInfo') return { subgroupMinSize: 8, subgroupMaxSize: 8, subgroupMatrixConfigs: configs };
        const value: unknown = Reflect.get(target, name, target);
        return typeof value === 'function' ? (value as () => unknown).bind(target) : value;
      },
    });
    const { profile } = await Engine.create({ device });
    expect(profile.f16).toBe(true);
    expect(profile.subgroupMatrix).toBeUndefined();
  });
});

let engine: Engine;
beforeAll(async () => {
  engine = await Engine.create({ device: await testDevice() });
});
afterAll(() => engine.destroy());

interface Product {
  readonly inputs: readonly (readonly number[])[];
  readonly build: (inputs: readonly Tensor[]) => Tensor;
  readonly reference: (inputs: readonly Float32Array[]) => ArrayLike<number>;
}

/** Runs a product in subgroup matrices and compares it with float64. */
async function check(on: Engine, dtype: 'f16' | 'f32', { inputs: shapes, build, reference }: Product): Promise<void> {
  const graph = new Graph();
  const rand = random(11);
  const values = shapes.map((shape) => Float32Array.from({ length: numel(shape) }, () => normal(rand)));
  const bits = values.map(f32ToF16);
  const inputs = shapes.map((shape, i) => graph.input(`input${i}`, shape, dtype));
  const output = build(inputs);
  const program = await compile(on, graph, { outputs: [output], poison: true, variants: { matmul: 'subgroup_matrix', conv2d: 'subgroup_matrix', conv2d_grad_input: 'subgroup_matrix' } });
  try {
    expect(program.steps[0]!.info.file).toMatch(/_subgroup_matrix\.wgsl$/);
    inputs.forEach((t, i) => program.write(t, dtype === 'f16' ? bits[i]! : values[i]!));
    program.run();
    const raw = await program.readRaw(output);
    const actual = dtype === 'f16' ? f16ToF32(new Uint16Array(raw)) : new Float32Array(raw);
    assertClose(program.steps[0]!.info.file, actual, reference(dtype === 'f16' ? bits.map(f16ToF32) : values), dtype === 'f16' ? 1e-3 : 5e-6);
  } finally {
    program.destroy();
  }
}

interface MatmulSizes {
  readonly batch?: number;
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly transposeA?: boolean;
  readonly transposeB?: boolean;
  /** silu(A·B + bias) + residual, as one kernel. */
  readonly epilogue?: boolean;
}

function matmulOf({ batch = 1, m, n, k, transposeA = false, transposeB = false, epilogue = false }: MatmulSizes): Product {
  return {
    inputs: [[batch, ...(transposeA ? [k, m] : [m, k])], [batch, ...(transposeB ? [n, k] : [k, n])], ...(epilogue ? [[n], [batch, m, n]] : [])],
    build([a, b, bias, residual]) {
      const y = matmul(a!, b!, { transposeA, transposeB });
      return epilogue ? add(silu(add(y, bias!)), residual!) : y;
    },
    reference([a, b, bias, residual]) {
      const y = new Float64Array(batch * m * n);
      for (let z = 0; z < batch; z++) for (let i = 0; i < m; i++) for (let j = 0; j < n; j++) {
        let total = 0;
        for (let p = 0; p < k; p++) total += a![z * m * k + (transposeA ? p * m + i : i * k + p)]! * b![z * k * n + (transposeB ? j * k + p : p * n + j)]!;
        const at = (z * m + i) * n + j;
        const biased = total + (bias?.[j] ?? 0);
        y[at] = epilogue ? biased / (1 + Math.exp(-biased)) + residual![at]! : total;
      }
      return y;
    },
  };
}

interface ConvSizes {
  readonly x: readonly [number, number, number, number];
  readonly filter: number;
  readonly outputs: number;
  readonly stride?: number;
  readonly epilogue?: boolean;
}

function convOf({ x: [batch, h, w, c], filter, outputs, stride = 1, epilogue = false }: ConvSizes): Product {
  const padding = (filter - 1) / 2;
  const [p, q] = [h, w].map((size) => Math.floor((size + 2 * padding - filter) / stride) + 1) as [number, number];
  return {
    inputs: [[batch, h, w, c], [filter, filter, c, outputs], ...(epilogue ? [[batch, 1, 1, outputs], [batch, p, q, outputs]] : [])],
    build([x, filters, embedding, residual]) {
      const y = conv2d(x!, filters!, { padding, stride });
      return epilogue ? add(silu(add(y, embedding!)), residual!) : y;
    },
    reference([x, filters, embedding, residual]) {
      const result = new Float64Array(batch * p * q * outputs);
      for (let z = 0; z < batch; z++) for (let oy = 0; oy < p; oy++) for (let ox = 0; ox < q; ox++) {
        const at = ((z * p + oy) * q + ox) * outputs;
        for (let fy = 0; fy < filter; fy++) for (let fx = 0; fx < filter; fx++) {
          const [iy, ix] = [oy * stride + fy - padding, ox * stride + fx - padding];
          if (iy < 0 || ix < 0 || iy >= h || ix >= w) continue;
          for (let ci = 0; ci < c; ci++) for (let o = 0; o < outputs; o++) result[at + o]! += x![((z * h + iy) * w + ix) * c + ci]! * filters![((fy * filter + fx) * c + ci) * outputs + o]!;
        }
        if (epilogue) for (let o = 0; o < outputs; o++) {
          const biased = result[at + o]! + embedding![z * outputs + o]!;
          result[at + o] = biased / (1 + Math.exp(-biased)) + residual![at + o]!;
        }
      }
      return result;
    },
  };
}

/** The kernel with arrays in place of matrices, which one lane of each subgroup of `lanes` holds and multiplies; the others only stage and store. */
function withoutMatrices(text: string, lanes: number): string {
  const replaced = text
    .replace('enable chromium_experimental_subgroup_matrix;\n', '')
    .replace('enable subgroups;\n', '')
    .replace(/, @builtin\(subgroup_id\) subgroup: u32/, '')
    .replace('compute_tile(subgroup, lane,', `compute_tile(select(9999u, lane / ${lanes}u, lane % ${lanes}u == 0u), lane,`)
    .replace(/^alias Left = .*$/m, 'alias Left = array<Component, FRAGMENT_M * FRAGMENT_K>;')
    .replace(/^alias Right = .*$/m, 'alias Right = array<Component, FRAGMENT_K * FRAGMENT_N>;')
    .replace(/^alias Result = .*$/m, 'alias Result = array<f32, FRAGMENT_M * FRAGMENT_N>;')
    .replace(/subgroupMatrixLoad<Left, row_major>\(&a_tile, /g, 'load_left(')
    .replace(/subgroupMatrixLoad<Right, row_major>\(&b_tile, /g, 'load_right(')
    .replace(/subgroupMatrixStore<row_major>\(&c_tile, /g, 'store_result(')
    .replace(/subgroupMatrixMultiplyAccumulate\(/g, 'multiply_accumulate(');
  expect(replaced).not.toMatch(/subgroup_?matrix/i);
  return `${replaced}
fn load_left(at: u32, stride: u32) -> Left {
  var x: Left;
  for (var i = 0u; i < FRAGMENT_M * FRAGMENT_K; i++) { x[i] = a_tile[at + i / FRAGMENT_K * stride + i % FRAGMENT_K]; }
  return x;
}
fn load_right(at: u32, stride: u32) -> Right {
  var x: Right;
  for (var i = 0u; i < FRAGMENT_K * FRAGMENT_N; i++) { x[i] = b_tile[at + i / FRAGMENT_N * stride + i % FRAGMENT_N]; }
  return x;
}
fn store_result(at: u32, x: Result, stride: u32) {
  var sums = x;
  for (var i = 0u; i < FRAGMENT_M * FRAGMENT_N; i++) { c_tile[at + i / FRAGMENT_N * stride + i % FRAGMENT_N] = sums[i]; }
}
fn multiply_accumulate(left: Left, right: Right, sums: Result) -> Result {
  var l = left;
  var r = right;
  var y = sums;
  for (var i = 0u; i < FRAGMENT_M * FRAGMENT_N; i++) {
    for (var k = 0u; k < FRAGMENT_K; k++) { y[i] += f32(l[i / FRAGMENT_N * FRAGMENT_K + k]) * f32(r[k * FRAGMENT_N + i % FRAGMENT_N]); }
  }
  return y;
}
`;
}

describe('the kernels with arrays in place of matrices', () => {
  /** Runs `body` on an engine that takes itself for one with these matrices, and whose shaders have arrays for them. */
  async function emulate(m: number, n: number, k: number, limits: Partial<AdapterProfile['limits']>, body: (on: Engine, dtype: 'f16' | 'f32') => Promise<void>): Promise<void> {
    const on = await Engine.create({ device: await testDevice() });
    const lanes = 8;
    const component = on.profile.f16 ? 'f16' : 'f32';
    Object.assign(on.profile, { subgroupMatrix: { lanes, shapes: [{ component, m, n, k }] }, limits: { ...on.profile.limits, ...limits } });
    const get = on.pipelines.get.bind(on.pipelines);
    on.pipelines.get = (info, overrides) => get(/_subgroup_matrix\.wgsl$/.test(info.file) ? { ...info, text: withoutMatrices(info.text, lanes) } : info, overrides);
    await body(on, component);
  }
  const ragged = { m: 37, n: 35, k: 45 };
  test('16x16x16, ragged, epilogue', () => emulate(16, 16, 16, {}, (on, dtype) => check(on, dtype, matmulOf({ ...ragged, epilogue: true }))));
  test('8x16x16, two subgroups, transposed operands, batched', () => emulate(8, 16, 16, { maxComputeInvocationsPerWorkgroup: 16 }, (on, dtype) => check(on, dtype, matmulOf({ ...ragged, batch: 3, transposeA: true, transposeB: true }))));
  test('16x8x8, 3x3 convolution, stride 2, epilogue', () => emulate(16, 8, 8, {}, (on, dtype) => check(on, dtype, convOf({ x: [2, 9, 7, 13], filter: 3, outputs: 34, stride: 2, epilogue: true }))));
});

describe('with the matrices', async () => {
  // Decides which tests exist.
  const { profile } = await Engine.create({ device: await testDevice() });
  const there = profile.subgroupMatrix?.shapes.some(({ component }) => component === 'f16') === true;
  const on = (name: string, run: () => Promise<void>) => test.skipIf(!there)(there ? name : `${name} (needs chromium-experimental-subgroup-matrix)`, run);
  for (const [m, n, k] of [[1, 1, 1], [8, 8, 8], [31, 33, 32], [32, 32, 31], [33, 65, 33], [63, 61, 67], [64, 64, 64], [65, 127, 129], [7, 500, 3], [300, 5, 77], [2, 36, 1280]] as const) {
    on(`matmul ${m}x${n}x${k}, epilogue`, () => check(engine, 'f16', matmulOf({ m, n, k, epilogue: true })));
  }
  for (const transposeA of [false, true]) for (const transposeB of [false, true]) {
    on(`matmul, tiles of 64, ragged, batched, ${transposeA ? 'T' : 'N'}${transposeB ? 'T' : 'N'}`, () => check(engine, 'f16', matmulOf({ batch: 25, m: 70, n: 67, k: 37, transposeA, transposeB, epilogue: true })));
  }
  on('convolution 1x1', () => check(engine, 'f16', convOf({ x: [2, 9, 11, 20], filter: 1, outputs: 70, epilogue: true })));
  on('convolution 3x3, tiles of 64', () => check(engine, 'f16', convOf({ x: [3, 33, 31, 10], filter: 3, outputs: 130, epilogue: true })));
  on('convolution 5x5, stride 2, odd channels', () => check(engine, 'f16', convOf({ x: [2, 13, 10, 11], filter: 5, outputs: 33, stride: 2 })));
  on('a GPU takes them by itself', async () => {
    const gpu = await Engine.create({ device: await testDevice() });
    Object.assign(gpu.profile, { kind: 'gpu' });
    const files = async (dtype: 'f16' | 'f32') => {
      const graph = new Graph();
      const program = await compile(gpu, graph, { outputs: [matmul(graph.input('a', [64, 64], dtype), graph.input('b', [64, 64], dtype))] });
      const names = program.steps.map(({ info }) => info.file);
      program.destroy();
      return names;
    };
    expect(await files('f16')).toContain('matmul_subgroup_matrix.wgsl');
    expect(await files('f32')).toContain('matmul_tiled.wgsl');
  });
  on('a U-Net in half precision, forward and backward, on a GPU with and without them', async () => {
    const gpu = await Engine.create({ device: await testDevice() });
    const { subgroupMatrix } = gpu.profile;
    const config = parseUNet2DConfig({ down_block_types: ['DownBlock2D', 'AttnDownBlock2D'], up_block_types: ['AttnUpBlock2D', 'UpBlock2D'], block_out_channels: [32, 64], layers_per_block: 1, norm_num_groups: 8, sample_size: 16 });
    const run = async (matrices: SubgroupMatrix | undefined) => {
      Object.assign(gpu.profile, { kind: 'gpu', subgroupMatrix: matrices });
      const parameters = new Parameters(new Graph());
      const { graph } = parameters;
      const ctx = { graph, parameters, computeType: 'f16' as const };
      const { sample, timestep } = unet2dInputs(ctx, config, [2, 16, 16]);
      const output = unet2d(ctx, config, { sample, timestep });
      const weight = [...parameters.tensors.values()].find((t) => t.shape.length === 4 && t.shape[2] === 32 && t.shape[3] === 64)!;
      const [gradient] = gradients(total(mul(output, output)), [weight]);
      const store = new WeightStore(gpu, parameters.specs.values());
      store.initialise(3);
      const program = await compile(gpu, graph, { outputs: [output, gradient!], bindings: store.bindings(parameters) });
      const rand = random(5);
      program.write(sample, Float32Array.from({ length: numel(sample.shape) }, () => normal(rand)));
      program.write(timestep, Float32Array.of(10, 700));
      program.run();
      const result = [await program.read(output), await program.read(gradient!)] as const;
      const products = program.steps.filter(({ info }) => info.file.endsWith('_subgroup_matrix.wgsl')).map(({ node }) => node.op.name);
      program.destroy();
      store.destroy();
      return { result, products: new Set(products) };
    };
    const [without, withThem] = [await run(undefined), await run(subgroupMatrix)];
    expect(without.products).toEqual(new Set());
    expect([...withThem.products].sort()).toEqual(['conv2d', 'conv2d_grad_input', 'matmul']);
    assertClose('output', withThem.result[0], without.result[0], 5e-3);
    assertClose('gradient', withThem.result[1], without.result[1], 1e-2);
  });
  on('the tuner races them', async () => {
    const graph = new Graph();
    matmul(graph.input('a', [70, 64], 'f16'), graph.input('b', [64, 96], 'f16'));
    const [tuned] = await tune(engine, graph);
    expect(Object.keys(tuned!.milliseconds)).toContain('subgroup_matrix');
    expect([...tuned!.wrong, ...tuned!.failed]).toEqual([]);
  });
});
