import { expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { Graph } from '../../src/engine/graph';
import { matmul } from '../../src/engine/ops/matmul';
import { subgroupTiles } from '../../src/engine/ops/product_kernel';
import { compile } from '../../src/engine/program';
import { describeOps } from '../helpers/describe_ops';
import { testDevice } from '../helpers/device';

await describeOps('matmul');

const engine = await Engine.create({ device: await testDevice() });

test('tiles of 64 rows are for llvmpipe of Mesa 26 and later', () => {
  const rows = (name: string) => subgroupTiles([{ rows: 64 }, { rows: 32 }, { rows: 8 }], { ...engine.profile, name }).map((tile) => tile.rows);
  expect(rows('mesa software llvmpipe: Mesa 25.0.7-2~bpo12+1 (LLVM 15.0.6)')).toEqual([32, 8]);
  expect(rows('mesa software llvmpipe: Mesa 26.2.6-1 (LLVM 22.1.8)')).toEqual([64, 32, 8]);
  expect(rows('mesa llvmpipe')).toEqual([32, 8]);
});

test.runIf(engine.profile.subgroupSize === 8)('products of few columns take tiles as tall as those of many', async () => {
  const workgroups = async (columns: number) => {
    const graph = new Graph();
    const y = matmul(graph.input('a', [2048, 64]), graph.input('b', [64, columns]));
    const program = await compile(engine, graph, { outputs: [y], variants: { matmul: 'subgroup' } });
    const [step] = program.steps;
    program.destroy();
    return step!.workgroups;
  };
  expect(await workgroups(12)).toEqual(await workgroups(32));
});
