import { afterAll, describe, expect, test } from 'vitest';
import { Engine } from '../src/engine/device';
import { Graph } from '../src/engine/graph';
import { add, mul } from '../src/engine/ops/pointwise';
import { total } from '../src/engine/ops/sum';
import { measurePeak } from '../src/engine/peak';
import { chromeTrace, profile, profileTable, type Profile } from '../src/engine/profiler';
import { compile } from '../src/engine/program';
import { testDevice } from './helpers/device';

const engine = await Engine.create({ device: await testDevice() });
const plain = await Engine.create({ device: await testDevice({ limits: 'default' }) });
afterAll(() => {
  engine.destroy();
  plain.destroy();
});

/** Thousands of small dispatches under two layer paths, to go beyond one query set. */
async function program(on: Engine, adds: number) {
  const graph = new Graph();
  const x = graph.input('x', [64, 64]);
  let y = x;
  graph.scope('body', () => {
    for (let i = 0; i < adds; i++) y = add(y, x);
  });
  const sum = graph.scope('head', () => total(mul(y, y)));
  const compiled = await compile(on, graph, { outputs: [sum], fuse: false });
  compiled.write(x, new Float32Array(64 * 64).fill(0.5));
  return { compiled, sum };
}

describe('profiler', () => {
  test.runIf(engine.profile.timestamps)('times every dispatch, beyond one query set', async () => {
    const { compiled, sum } = await program(engine, 2100);
    const measured = await profile(compiled, { runs: 3 });
    expect(measured.note).toBeUndefined();
    expect(measured.steps.length).toBe(compiled.steps.length);
    expect(measured.steps.length).toBeGreaterThan(2100);
    expect(measured.steps[0]).toMatchObject({ path: 'body', flops: 64 * 64, bytes: 3 * 64 * 64 * 4 });
    expect(measured.steps.at(-1)!.path).toBe('head');
    const timed = measured.steps.filter((s) => s.time!.median > 0);
    // Coarse clocks may miss some of such short dispatches.
    expect(timed.length).toBeGreaterThan(0);
    for (const s of measured.steps) {
      expect(s.time!.min).toBeLessThanOrEqual(s.time!.median);
      expect(s.time!.median).toBeLessThan(1e10);
    }
    expect(measured.total).toBeGreaterThan(0);
    // It still computes what it computed.
    expect((await compiled.read(sum))[0]! / (64 * 64 * (2101 * 0.5) ** 2)).toBeCloseTo(1, 6);
    compiled.destroy();
  });

  test('without timestamps it times whole replays and says so', async () => {
    const { compiled } = await program(plain, 5);
    const measured = await profile(compiled, { runs: 2 });
    expect(measured.note).toMatch(/no timestamp-query/);
    expect(measured.total).toBeGreaterThan(0);
    expect(measured.steps.every((s) => s.time === undefined)).toBe(true);
    expect(profileTable(measured)).toMatch(/only whole replays/);
    expect(chromeTrace(measured)).toMatchObject({ traceEvents: [{}, {}, { name: 'replay', ph: 'X' }] });
    compiled.destroy();
  });

  const known: Profile = {
    adapter: 'test adapter',
    runs: 3,
    total: 3e6,
    note: undefined,
    steps: [
      { label: 'a:conv2d', op: 'conv2d', path: 'a', kernel: 'conv2d.wgsl:forward', flops: 2e6, bytes: 1e6, time: { min: 9e5, median: 1e6, start: 0 } },
      { label: 'b:conv2d', op: 'conv2d', path: 'b', kernel: 'conv2d.wgsl:forward', flops: 2e6, bytes: 1e6, time: { min: 9e5, median: 1e6, start: 1.5e6 } },
      { label: 'b:add', op: 'add', path: 'b', kernel: 'pointwise.wgsl:forward', flops: 1e5, bytes: 4e6, time: { min: 1e6, median: 1e6, start: 3e6 } },
    ],
  };

  test('table', () => {
    expect(profileTable(known, { f32: 8e9, f16: undefined, bandwidth: 8e9 })).toMatchInlineSnapshot(`
      "test adapter: 3 dispatches, median of 3 replays
      peak 8.0 GFLOP/s f32, copy 8.0 GB/s

      op      calls     ms   share  GFLOP    MB  GFLOP/s  GB/s  of peak  of copy
      conv2d      2  2.000   66.7%  0.004  2.00     2.00  1.00    25.0%    12.5%
      add         1  1.000   33.3%  0.000  4.00     0.10  4.00     1.3%    50.0%
      all         3  3.000  100.0%  0.004  6.00     1.37  2.00    17.1%    25.0%"
    `);
  });

  test('Chrome trace', () => {
    const { traceEvents } = chromeTrace(known) as { traceEvents: { ph: string; name: string; ts: number; dur: number; args: object }[] };
    const complete = traceEvents.filter((e) => e.ph === 'X');
    expect(complete.map((e) => [e.name, e.ts, e.dur])).toEqual([['conv2d', 0, 1000], ['conv2d', 1500, 1000], ['add', 3000, 1000]]);
    expect(complete[1]!.args).toEqual({ path: 'b', kernel: 'conv2d.wgsl:forward', flops: 2e6, bytes: 1e6, gflops_per_s: 2, min_us: 900 });
  });
});

test('peak is measured once, and is plausible', async () => {
  const before = engine.liveBytes;
  const peak = await measurePeak(engine);
  expect(await measurePeak(engine)).toBe(peak);
  expect(peak.f32).toBeGreaterThan(1e8);
  expect(peak.f32).toBeLessThan(1e15);
  expect(peak.bandwidth).toBeGreaterThan(1e8);
  expect(peak.bandwidth).toBeLessThan(1e14);
  expect(peak.f16 === undefined).toBe(!engine.profile.f16);
  expect(engine.liveBytes).toBe(before);
});
