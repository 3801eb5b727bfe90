import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { Graph } from '../../src/engine/graph';
import { defineOp } from '../../src/engine/op';
import { groupNorm } from '../../src/engine/ops/group_norm';
import { matmul, matmulOp } from '../../src/engine/ops/matmul';
import { compile } from '../../src/engine/program';
import { exportTuning, importTuning, tune } from '../../src/engine/tune';
import { tuningKey } from '../../src/engine/tuning_key';
import { loadTuning, saveTuning, tuningFile } from '../../src/node/tuning_store';
import { Engine } from '../../src/engine/device';
import { testDevice } from '../helpers/device';

const engine = await Engine.create({ device: await testDevice() });
afterAll(() => engine.tuning.clear());

describe('tuner', () => {
  test('times every variant of each op and shape once, and programs follow what it finds', async () => {
    const graph = new Graph();
    const a = graph.input('a', [64, 64]);
    const w = graph.input('w', [64]);
    const y = groupNorm(matmul(matmul(a, a), a), w, w, { groups: 8, eps: 1e-5 });
    const seen: string[] = [];
    const tuned = await tune(engine, graph, { onProgress: (done, total, { op }) => seen.push(`${done}/${total} ${op}`) });
    expect(seen).toEqual(['1/2 matmul', '2/2 group_norm']);
    for (const { milliseconds, winner, wrong } of tuned) {
      expect(Object.keys(milliseconds)).toContain('default');
      expect(Object.keys(milliseconds)).toContain(winner);
      expect(wrong).toEqual([]);
      for (const ms of Object.values(milliseconds)) expect(ms).toBeGreaterThan(0);
    }
    const node = y.node!;
    engine.tuning.set(tuningKey(node), 'tiled');
    const program = await compile(engine, graph, { outputs: [y] });
    expect(program.steps.map((s) => s.info.entry)).toContain('merge_tiled');
    program.destroy();
    engine.tuning.set(tuningKey(node), 'a variant of another version');
    (await compile(engine, graph, { outputs: [y] })).destroy();
  });

  test('a variant with other results is left out and named', async () => {
    const plain = { transposeA: false, transposeB: false, sumBatch: false };
    const skewed = defineOp({
      ...matmulOp,
      name: 'skewed',
      variants: ['direct', 'broken'],
      lower: (ctx) => matmulOp.lower({ ...ctx, variant: 'direct', attrs: ctx.variant === 'broken' ? { ...plain, transposeB: true } : ctx.attrs }),
    });
    const graph = new Graph();
    graph.add(skewed, [graph.input('a', [8, 8]), graph.input('b', [8, 8])], plain);
    const [tuned] = await tune(engine, graph);
    expect(tuned!.wrong).toEqual(['broken']);
    expect(tuned!.winner).toBe('default');
  });

  test('an aborted tuning says so', async () => {
    const graph = new Graph();
    matmul(graph.input('a', [4, 4]), graph.input('b', [4, 4]));
    await expect(tune(engine, graph, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'aborted' });
  });

  test('is stored by adapter and version', async () => {
    engine.tuning.clear();
    engine.tuning.set('matmul x', 'tiled');
    const table = exportTuning(engine, '1.0.0');
    engine.tuning.clear();
    expect(importTuning(engine, { ...table, adapter: 'another' }, '1.0.0')).toBe(false);
    expect(importTuning(engine, table, '2.0.0')).toBe(false);
    expect(importTuning(engine, 'nonsense', '1.0.0')).toBe(false);
    expect(engine.tuning.size).toBe(0);
    expect(importTuning(engine, JSON.parse(JSON.stringify(table)), '1.0.0')).toBe(true);
    expect([...engine.tuning]).toEqual([['matmul x', 'tiled']]);

    const folder = await mkdtemp(join(tmpdir(), 'bruit-tuning-'));
    try {
      const file = join(folder, 'deep', 'tuning.json');
      await saveTuning(engine, file);
      engine.tuning.clear();
      expect(await loadTuning(engine, file)).toBe(true);
      expect(engine.tuning.get('matmul x')).toBe('tiled');
      await writeFile(file, '{ torn');
      expect(await loadTuning(engine, file)).toBe(false);
      expect(await loadTuning(engine, join(folder, 'missing.json'))).toBe(false);
      expect(tuningFile('A b/c: 1')).toMatch(/bruit\/tuning\/a-b-c-1\.json$/);
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
});
