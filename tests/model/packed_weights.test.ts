/** Packed weights from checkpoint to result: layouts, memory, errors that are told, weights longer than a binding, adapters merged into them. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { gradients } from '../../src/engine/autodiff';
import { Engine } from '../../src/engine/device';
import { Graph, type Tensor } from '../../src/engine/graph';
import { add, mul } from '../../src/engine/ops/pointwise';
import { total } from '../../src/engine/ops/sum';
import { compile } from '../../src/engine/program';
import { pack, packedBytes, unpack } from '../../src/io/packed';
import { openSafetensors, writeSafetensors } from '../../src/io/safetensors';
import { bytesSource } from '../../src/io/source';
import { conv, embed, linear, type ModelContext } from '../../src/model/layers';
import { MergedLoras } from '../../src/model/lora';
import { Parameters, WeightStore } from '../../src/model/parameters';
import { weightBytes, weightFormat, type WeightStorage } from '../../src/model/weight_format';
import { testDevice } from '../helpers/device';
import { assertClose, normal, packingChecks, random } from '../helpers/op_suite';

let engine: Engine;
beforeAll(async () => {
  engine = await Engine.create({ device: await testDevice({ limits: 'default' }) });
});
afterAll(() => engine.destroy());

const formats = ['f16', 'bf16', 'int8', 'int4'] as const;
const noise = (n: number, seed: number, scale = 1): Float32Array => {
  const rand = random(seed);
  return Float32Array.from({ length: n }, () => scale * normal(rand));
};

describe('layout of words', () => {
  test.each(formats)('%s: what is packed twice is the same', (format) => {
    const data = noise(70 * 12, 3);
    const once = unpack(format, pack(format, data, 12), data.length, 12);
    const words = pack(format, once, 12);
    expect(words.byteLength).toBe(packedBytes(format, data.length, 12));
    if (format.startsWith('int')) assertClose(format, unpack(format, words, data.length, 12), once, 1e-6);
    else expect(unpack(format, words, data.length, 12)).toEqual(once);
  });

  test('int8 and int4 err by at most half a step of their block, along the reduction', () => {
    const [rows, columns] = [40, 4];
    const data = noise(rows * columns, 5);
    // One column, and one block of another, of other sizes: no other may feel it.
    for (let r = 0; r < rows; r++) data[r * columns + 1]! *= 1000;
    for (let r = 32; r < rows; r++) data[r * columns + 2]! *= 0.001;
    for (const [format, steps] of [['int8', 127], ['int4', 8]] as const) {
      const stored = unpack(format, pack(format, data, columns), data.length, columns);
      for (let c = 0; c < columns; c++) {
        for (const [first, end] of [[0, 32], [32, 40]] as const) {
          const block = Array.from({ length: end - first }, (_, r) => (first + r) * columns + c);
          const largest = Math.max(...block.map((i) => Math.abs(data[i]!)));
          // The positive end of int4 is one step short.
          for (const i of block) expect(Math.abs(stored[i]! - data[i]!)).toBeLessThanOrEqual((largest / steps) * (format === 'int4' ? 1 : 0.5) * 1.00001);
        }
      }
    }
  });

  test('zeros stay zeros', () => {
    for (const format of formats) expect(unpack(format, pack(format, new Float32Array(64), 4), 64, 4).every((x) => x === 0)).toBe(true);
  });
});

for (const check of packingChecks()) test(check.name, () => check.run(engine));

/** A model with every kind of weight. */
function build(ctx: ModelContext, ids: Tensor, image: Tensor): Tensor {
  const tokens = linear(ctx, 'linear', embed(ctx, 'table', ids, 40, 16), 48);
  const y = conv(ctx, 'conv', conv(ctx, 'conv_in', image, 16), 48);
  return add(y, tokens);
}

async function checkpoint(dtype: 'F32' | 'F16' | 'BF16') {
  const shapes: Record<string, number[]> = { 'table.weight': [40, 16], 'linear.weight': [48, 16], 'linear.bias': [48], 'conv_in.weight': [16, 3, 3, 3], 'conv_in.bias': [16], 'conv.weight': [48, 16, 3, 3], 'conv.bias': [48] };
  return openSafetensors(bytesSource(writeSafetensors(Object.entries(shapes).map(([name, shape], i) => ({ name, dtype, shape, data: noise(shape.reduce((a, b) => a * b), i + 1, 0.2) }))), 'model.safetensors'));
}

/** As on a device that binds no more at once. */
async function withLimit<T>(bytes: number | undefined, body: () => Promise<T>): Promise<T> {
  const limits: { maxStorageBufferBindingSize: number } = engine.profile.limits;
  const real = limits.maxStorageBufferBindingSize;
  limits.maxStorageBufferBindingSize = bytes ?? real;
  try {
    return await body();
  } finally {
    limits.maxStorageBufferBindingSize = real;
  }
}

interface RunOptions {
  readonly change?: (store: WeightStore) => void;
  /** Most bytes that the store takes a binding to hold. */
  readonly limit?: number;
}

async function run(storage: WeightStorage, dtype: 'F32' | 'F16' | 'BF16', { change, limit }: RunOptions = {}) {
  const graph = new Graph();
  const parameters = new Parameters(graph);
  const ids = graph.input('ids', [1, 1, 1], 'i32');
  const image = graph.input('image', [1, 4, 4, 3]);
  const y = build({ graph, parameters }, ids, image);
  const file = await checkpoint(dtype);
  const store = await withLimit(limit, () => WeightStore.fromCheckpoint(engine, parameters.specs.values(), file, { storage }));
  change?.(store);
  const program = await compile(engine, graph, { outputs: [y], bindings: store.bindings(parameters), poison: true });
  program.write(ids, Int32Array.of(37));
  program.write(image, noise(48, 11));
  program.run();
  const values = await program.read(y);
  const weights = new Map((await store.readAll()).map((t) => [t.name, t.data]));
  const { slabs } = store;
  const report = store.storageReport();
  const steps = program.steps.map(({ node }) => node.op.name);
  program.destroy();
  store.destroy();
  return { values, weights, report, steps, slabs: slabs.length, bytes: slabs.reduce((n, s) => n + s.bytes, 0) };
}

/** What the model gives with these weights, all f32. */
async function withWeights(weights: ReadonlyMap<string, Float32Array>): Promise<Float32Array> {
  return (await run('f32', 'F32', { change: (store) => weights.forEach((data, name) => store.write(name, data)) })).values;
}

describe('a model', () => {
  test.each([['auto', 'F16', 'f16'], ['auto', 'BF16', 'bf16'], ['auto', 'F32', 'f32'], ['int8', 'F32', 'int8'], ['int4', 'F16', 'int4'], ['f32', 'F16', 'f32']] as const)('weights: %s of a file of %s are %s', async (storage, dtype, format) => {
    const whole = await run('f32', dtype);
    const { values, weights, report, bytes, steps } = await run(storage, dtype);
    assertClose('values', values, await withWeights(weights), 1e-5);
    expect(steps).not.toContain('unpack');
    expect(report.find((r) => r.layout === 'linear')!.format).toBe(format);
    // Three channels do not fill words of levels: as in the file.
    expect(report.filter((r) => r.layout === 'conv').map((r) => r.format)).toContain(format.startsWith('int') ? (dtype === 'F16' ? 'f16' : 'f32') : format);
    expect(report.find((r) => r.layout === 'plain')).toMatchObject({ format: 'f32', tensors: 3, maxError: 0 });
    if (format !== 'f32') expect(bytes).toBeLessThan(whole.bytes * { f16: 0.6, bf16: 0.6, int8: 0.4, int4: 0.3 }[format]);
    const exact = storage === 'auto' || storage === 'f32';
    for (const r of report) {
      if (r.layout === 'plain' || r.format !== format) continue;
      const difference = [...weights].flatMap(([name, data]) => (name.includes(r.layout === 'table' ? 'table' : `${r.layout}.`) && name.endsWith('weight') ? Array.from(data, (x, i) => Math.abs(x - whole.weights.get(name)![i]!)) : []));
      expect(r.maxError).toBeCloseTo(Math.max(...difference), 6);
      if (exact) expect(r.rmsError).toBe(0);
      else expect(r.rmsError / r.rms).toSatisfy((e: number) => (format === 'int8' ? e > 0.001 && e < 0.01 : e > 0.03 && e < 0.15));
    }
  });

  test('GPU memory as the formats say, counted at createBuffer', async () => {
    const { device } = engine;
    const create = device.createBuffer.bind(device);
    let created = 0;
    device.createBuffer = (descriptor) => {
      if (descriptor.label?.startsWith('weights.')) created += descriptor.size;
      return create(descriptor);
    };
    try {
      const taken: number[] = [];
      for (const storage of ['f32', 'f16', 'int8', 'int4'] as const) {
        created = 0;
        const specs = [{ name: 'w', shape: [256, 1024], layout: 'linear', init: { kind: 'constant', value: 0 }, trainable: true }] as const;
        const store = new WeightStore(engine, specs, 'weights', (spec) => weightFormat(spec, storage));
        expect(created).toBe(weightBytes(specs[0], storage));
        taken.push((created * 8) / 256 / 1024);
        store.destroy();
      }
      expect(taken).toEqual([32, 16, 9, 5]);
    } finally {
      device.createBuffer = create;
    }
  });

  test('a number that f16 cannot hold is named', async () => {
    await expect(run('f16', 'F32', { change: (store) => store.write('linear.weight', new Float32Array(768).fill(1e5)) })).rejects.toThrow(/'linear.weight' holds 100000, and f16 ends at 65504/);
  });

  test('gradients through packed weights', async () => {
    const graph = new Graph();
    const parameters = new Parameters(graph);
    const image = graph.input('image', [1, 6, 5, 16]);
    const y = linear({ graph, parameters }, 'linear', conv({ graph, parameters }, 'conv', image, 48), 16, { bias: false });
    const [dx] = gradients(total(mul(y, y)), [image]);
    const results: Float32Array[] = [];
    const store = new WeightStore(engine, parameters.specs.values(), 'weights', (spec) => weightFormat(spec, 'int8'));
    store.initialise(3);
    const plain = new WeightStore(engine, parameters.specs.values());
    for (const { name, data } of await store.readAll()) plain.write(name, data);
    for (const each of [store, plain]) {
      const program = await compile(engine, graph, { outputs: [dx!], bindings: each.bindings(parameters) });
      program.write(image, noise(480, 2));
      program.run();
      results.push(await program.read(dx!));
      program.destroy();
      each.destroy();
    }
    assertClose('gradient', results[0]!, results[1]!, 1e-5);
  });
});

describe('weights longer than a binding', () => {
  test.each(['f32', 'bf16', 'int8', 'int4'] as const)('%s in parts: the same values', async (storage) => {
    const whole = await run(storage, 'F32');
    // The last convolution in two to twelve parts.
    const parts = await run(storage, 'F32', { limit: 3072 });
    expect(parts.slabs).toBeGreaterThan(whole.slabs);
    expect(parts.steps).toContain('concat');
    expect(parts.weights).toEqual(whole.weights);
    assertClose('values', parts.values, whole.values, 1e-6);
  });

  test('a table in parts: every row, and ids outside', async () => {
    const graph = new Graph();
    const parameters = new Parameters(graph);
    const ids = graph.input('ids', [8], 'i32');
    const y = embed({ graph, parameters }, 'table', ids, 100, 32);
    const expected = noise(3200, 4);
    const store = await withLimit(1024, () => Promise.resolve(new WeightStore(engine, parameters.specs.values())));
    store.write('table.weight', expected);
    expect(store.slabs.length).toBe(13);
    const program = await compile(engine, graph, { outputs: [y], bindings: store.bindings(parameters), poison: true });
    for (const { info } of program.steps) expect([...info.bindings.values()].filter((b) => b.type !== 'uniform').length).toBeLessThanOrEqual(8);
    const rows = [-5, 0, 7, 8, 95, 96, 99, 1000];
    program.write(ids, Int32Array.from(rows));
    program.run();
    const values = await program.read(y);
    rows.forEach((r, i) => expect(values.subarray(i * 32, i * 32 + 32)).toEqual(expected.subarray(Math.min(Math.max(r, 0), 99) * 32).subarray(0, 32)));
    program.destroy();
    store.destroy();
  });

  test('activations beyond the limit: tensor, op, layer, sizes, and what to do', async () => {
    const graph = new Graph();
    const parameters = new Parameters(graph);
    const y = linear({ graph, parameters }, 'to_q', graph.input('x', [1, 16, 4]), 64);
    await withLimit(2048, async () => {
      const store = new WeightStore(engine, parameters.specs.values());
      await expect(compile(engine, graph, { outputs: [y], bindings: store.bindings(parameters) })).rejects.toThrow(
        /f32\[1,16,64\] of \w+ \(to_q\) takes 4096 bytes, this device binds at most 2048 at once\. Use a smaller batch or image; decode latents in tiles .*gradient checkpointing/,
      );
      store.destroy();
    });
  });

  test('a parameter that nothing may split is refused by name', async () => {
    await withLimit(1024, async () => {
      expect(() => new WeightStore(engine, [{ name: 'position', shape: [77, 64], layout: 'plain', init: { kind: 'constant', value: 0 }, trainable: true }])).toThrow(/'position' takes 19712 bytes as f32; this device binds at most 1024 at once/);
      return Promise.resolve();
    });
  });
});

test.each(formats)('adapters merged into %s weights, and every bit restored', async (format) => {
  const specs = [{ name: 'to_q.weight', shape: [48, 64], layout: 'linear', init: { kind: 'normal', std: 0.1 }, trainable: true }] as const;
  const store = new WeightStore(engine, specs, 'unet', (spec) => weightFormat(spec, format));
  store.initialise(9);
  const base = await store.read('to_q.weight');
  const [down, up] = [noise(4 * 64, 1, 0.1), noise(48 * 4, 2, 0.1)];
  const file = await openSafetensors(bytesSource(writeSafetensors([{ name: 'down', dtype: 'F32', shape: [4, 64], data: down }, { name: 'up', dtype: 'F32', shape: [48, 4], data: up }]), 'lora.safetensors'));
  const merged = new MergedLoras(engine, store);
  await merged.set([{ lora: { name: 'lora', modules: new Map([['to_q', { rank: 4, alpha: 4, inFile: { down: 'down', up: 'up' } }]]), store: file }, scale: 0.5 }]);
  const sum = base.map((w, i) => w + 0.5 * Array.from({ length: 4 }, (_, r) => up[Math.floor(i / 64) * 4 + r]! * down[r * 64 + (i % 64)]!).reduce((a, b) => a + b));
  // The host packs the matrix as it is stored, [in,out].
  const transposed = Float32Array.from(sum, (_, i) => sum[(i % 48) * 64 + Math.floor(i / 48)]!);
  const stored = unpack(format, pack(format, transposed, 48), sum.length, 48);
  const expected = Float32Array.from(sum, (_, i) => stored[(i % 64) * 48 + Math.floor(i / 64)]!);
  // A sum that lies between two levels may fall to either.
  const step = { f16: 1e-3, bf16: 8e-3, int8: 1 / 127, int4: 1 / 7 }[format];
  assertClose('merged', await store.read('to_q.weight'), expected, step);
  expect((await store.read('to_q.weight')).filter((w, i) => w !== base[i]).length).toBeGreaterThan(sum.length / 3);
  merged.destroy();
  expect(await store.read('to_q.weight')).toEqual(base);
  store.destroy();
});
