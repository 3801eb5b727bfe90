import { afterAll, expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { Graph } from '../../src/engine/graph';
import { embedding } from '../../src/engine/ops/embedding';
import { gatherRows } from '../../src/engine/ops/gather_rows';
import { scale, shift } from '../../src/engine/ops/pointwise';
import { reshape } from '../../src/engine/ops/reshape';
import { accumulateInto, copyInto, increment } from '../../src/engine/ops/state';
import { compile } from '../../src/engine/program';
import { testDevice } from '../helpers/device';

const engine = await Engine.create({ device: await testDevice() });
afterAll(() => engine.destroy());

test('a sampling loop: coefficients by a counter, the next sample in place of the sample', async () => {
  const graph = new Graph();
  const table = Float32Array.from({ length: 15 }, (_, i) => i * i - 20);
  const step = graph.state('step', [1], 'u32', Uint32Array.of(2));
  const sample = graph.state('sample', [2, 3], 'f32', Float32Array.of(1, 2, 3, 4, 5, 6));
  const row = gatherRows(graph.constant('coefficients', [5, 3], table), step);
  const next = shift(scale(sample, 2), 1);
  copyInto(sample, next);
  increment(step);
  // Read after the updates.
  const seen = shift(sample, 0.5);
  const program = await compile(engine, graph, { outputs: [row, seen], poison: true });
  let expected = [1, 2, 3, 4, 5, 6];
  for (const at of [2, 3, 4, 4]) {
    program.run();
    expected = expected.map((v) => 2 * v + 1);
    expect(Array.from(await program.read(row))).toEqual(Array.from(table.subarray(at * 3, at * 3 + 3)));
    expect(Array.from(await program.read(sample))).toEqual(expected);
    expect(Array.from(await program.read(seen))).toEqual(expected.map((v) => v + 0.5));
  }
  expect(Array.from(new Uint32Array(await program.readRaw(step)))).toEqual([6]);
  program.destroy();
});

test('increment counts down and wraps', async () => {
  const graph = new Graph();
  const counters = graph.state('counters', [3], 'u32', Uint32Array.of(0, 5, 4294967295));
  increment(counters, -3);
  const program = await compile(engine, graph, { outputs: [] });
  program.run();
  expect(Array.from(new Uint32Array(await program.readRaw(counters)))).toEqual([4294967293, 2, 4294967292]);
  program.destroy();
});

// The last shape takes more than 65,535 workgroups.
test.each([[[8, 4]], [[7, 3]], [[4097, 1025]]])('copyInto and accumulateInto of %j', async (shape) => {
  const graph = new Graph();
  const n = shape[0]! * shape[1]!;
  const source = graph.input('source', shape);
  const copy = graph.state('copy', shape);
  const sums = graph.state('sums', shape, 'f32', new Float32Array(n).fill(1));
  copyInto(copy, source);
  accumulateInto(sums, source, 0.25);
  const program = await compile(engine, graph, { outputs: [] });
  const data = Float32Array.from({ length: n }, (_, i) => (i % 97) - 48);
  program.write(source, data);
  program.run(2);
  const [copied, summed] = [await program.read(copy), await program.read(sums)];
  // Not toEqual, which takes minutes over four million numbers.
  expect(data.findIndex((v, i) => copied[i] !== v)).toBe(-1);
  expect(data.findIndex((v, i) => summed[i] !== 1 + 0.5 * v)).toBe(-1);
  program.destroy();
});

test('copyInto moves integers as bits', async () => {
  const graph = new Graph();
  // 0x7fa00000 is a signalling NaN if it passes through a float.
  const words = Uint32Array.of(0x7fa00000, 1, 0xffffffff);
  const copy = graph.state('copy', [3], 'u32');
  copyInto(copy, graph.constant('words', [3], words));
  const program = await compile(engine, graph, { outputs: [] });
  program.run();
  expect(new Uint32Array(await program.readRaw(copy))).toEqual(words);
  program.destroy();
});

test('mistakes are explained', () => {
  const graph = new Graph();
  const state = graph.state('sample', [2, 3]);
  const value = scale(state, 2);
  expect(() => copyInto(value, state)).toThrow(/copyInto: .* is a value; only states and parameters/);
  expect(() => copyInto(state, state)).toThrow(/both source and destination/);
  expect(() => accumulateInto(state, reshape(value, [3, 2]))).toThrow(/accumulate_into .*\[2,3\] and source \[3,2\]/);
  expect(() => increment(state)).toThrow(/increment .*a counter is u32, not f32/);
  expect(() => embedding(state, value)).toThrow(/ids must be i32 or u32/);
});
