import { afterAll, expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { Graph, type Tensor } from '../../src/engine/graph';
import { dropout, randomInt, randomNormal, randomUniform, type RandomSource } from '../../src/engine/ops/random';
import { compile } from '../../src/engine/program';
import { integers, normals, RngStream, seedKey, uniforms } from '../../src/engine/rng';
import { testDevice } from '../helpers/device';

const engine = await Engine.create({ device: await testDevice() });
afterAll(() => engine.destroy());

const seed = 2 ** 40 + 17;
const shape = [3, 5, 7];
const elements = 105;

/** Runs what `build` makes for the given samples and step. */
async function draw(samples: readonly number[], step: number, build: (graph: Graph, source: RandomSource) => Tensor): Promise<ArrayBuffer> {
  const graph = new Graph();
  const source: RandomSource = {
    seed: graph.constant('seed', [2], Uint32Array.from(seedKey(seed))),
    samples: graph.constant('samples', [samples.length], Uint32Array.from(samples)),
    step: graph.constant('step', [1], Uint32Array.of(step)),
    stream: RngStream.noise,
  };
  const y = build(graph, source);
  const program = await compile(engine, graph, { outputs: [y], poison: true });
  try {
    program.run();
    return await program.readRaw(y);
  } finally {
    program.destroy();
  }
}

const noise = async (samples: readonly number[], step: number) => new Float32Array(await draw(samples, step, (graph, source) => randomNormal({ graph, shape: [samples.length, ...shape], ...source })));

test('sample i is the same in whatever batch, bit for bit, and the host draws it too', async () => {
  const batches = [[0], [1], [0, 1, 2, 3], [3, 1], [9, 8, 7, 1, 0], [4294967295, 1]];
  const rows = new Map<number, Float32Array>();
  for (const samples of batches) {
    const all = await noise(samples, 12);
    samples.forEach((index, n) => {
      const row = all.slice(n * elements, (n + 1) * elements);
      const before = rows.get(index);
      if (before) expect(row).toEqual(before);
      else rows.set(index, row);
    });
  }
  for (const [index, row] of rows) {
    const host = normals(seed, { index, step: 12 }, elements);
    // A few ulp of numbers up to 4.
    row.forEach((v, i) => expect(Math.abs(v - host[i]!)).toBeLessThan(1e-6 * Math.max(1, Math.abs(host[i]!))));
  }
  expect(new Set([...rows.values()].map(String)).size).toBe(rows.size);
  expect(await noise([1], 13)).not.toEqual(rows.get(1));
});

test('a million normals: moments, tails, and agreement with the host', async () => {
  const n = 1 << 20;
  const z = new Float32Array(await draw([5], 3, (graph, source) => randomNormal({ graph, shape: [1, n], ...source })));
  const host = normals(seed, { index: 5, step: 3 }, n);
  let worst = 0;
  const moments = [0, 0, 0, 0, 0];
  let beyond3 = 0;
  z.forEach((v, i) => {
    worst = Math.max(worst, Math.abs(v - host[i]!) / Math.max(1, Math.abs(v)));
    moments.forEach((_, k) => (moments[k]! += v ** k / n));
    if (Math.abs(v) > 3) beyond3++;
  });
  expect(worst).toBeLessThan(1e-6);
  // Five standard errors, √(Var zᵏ / n).
  expect(Math.abs(moments[1]!)).toBeLessThan(5 * Math.sqrt(1 / n));
  expect(Math.abs(moments[2]! - 1)).toBeLessThan(5 * Math.sqrt(2 / n));
  expect(Math.abs(moments[3]!)).toBeLessThan(5 * Math.sqrt(15 / n));
  expect(Math.abs(moments[4]! - 3)).toBeLessThan(5 * Math.sqrt(96 / n));
  const p = 0.0026998;
  expect(Math.abs(beyond3 - p * n)).toBeLessThan(5 * Math.sqrt(p * (1 - p) * n));
});

test('uniforms and integers agree with the host, integers bit for bit', async () => {
  const samples = [3, 0, 77];
  const u = new Float32Array(await draw(samples, 1, (graph, source) => randomUniform({ graph, shape: [3, ...shape], ...source })));
  const k = new Uint32Array(await draw(samples, 1, (graph, source) => randomInt({ graph, shape: [3, ...shape], ...source }, 1000)));
  samples.forEach((index, n) => {
    const expected = uniforms(seed, { index, step: 1 }, elements);
    expected.forEach((v, i) => expect(Math.abs(u[n * elements + i]! - v)).toBeLessThanOrEqual(1.2e-7 * v));
    expect(k.slice(n * elements, (n + 1) * elements)).toEqual(integers(seed, { index, step: 1 }, elements, 1000));
  });
});

test('integers are uniform', async () => {
  const counts = new Array<number>(10).fill(0);
  const k = new Uint32Array(await draw([0], 0, (graph, source) => randomInt({ graph, shape: [1, 100_000], ...source }, 10)));
  k.forEach((v) => counts[v]!++);
  // 9 degrees of freedom, p = 0.001; the stream is fixed, so this cannot flake.
  expect(counts.reduce((sum, c) => sum + (c - 10_000) ** 2 / 10_000, 0)).toBeLessThan(27.9);
});

test('dropout keeps the share 1 - p and the mean', async () => {
  const n = 100_000;
  const y = new Float32Array(await draw([4], 2, (graph, source) => dropout(graph.constant('ones', [1, n], new Float32Array(n).fill(1)), 0.3, source)));
  const kept = y.filter((v) => v !== 0);
  expect(Math.abs(kept.length - 0.7 * n)).toBeLessThan(5 * Math.sqrt(0.21 * n));
  expect(kept.every((v) => Math.abs(v - 1 / 0.7) < 1e-6)).toBe(true);
});

test('wrong sources are explained', () => {
  const graph = new Graph();
  const source: RandomSource = { seed: graph.constant('seed', [1], Uint32Array.of(1)), samples: graph.input('samples', [2], 'u32'), step: graph.input('step', [1], 'u32'), stream: 0 };
  expect(() => randomNormal({ graph, shape: [2, 3], ...source })).toThrow(/random_normal .*seed must be u32 \[2\]/);
  const good = { ...source, seed: graph.constant('seed', [2], Uint32Array.of(1, 0)) };
  expect(() => randomNormal({ graph, shape: [3, 3], ...good })).toThrow(/samples must be u32 \[3\] for a result of \[3,3\], not u32 \[2\]/);
  expect(() => dropout(graph.input('x', [2, 2]), 1, good)).toThrow(/probability 1 must be in \[0, 1\)/);
});
