import { expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { Graph } from '../../src/engine/graph';
import { conv2d } from '../../src/engine/ops/conv2d';
import { compile } from '../../src/engine/program';
import { describeOps } from '../helpers/describe_ops';
import { testDevice } from '../helpers/device';

await describeOps('conv2d');

const engine = await Engine.create({ device: await testDevice() });

test.runIf(engine.profile.kind === 'software')('software adapters unfold few channels to more than twice as many, where a tile of theirs is not mostly empty and taps are not shared along rows', async () => {
  const unfolded = async (channels: number, outputs: number, upsample = false) => {
    const graph = new Graph();
    const y = conv2d(graph.input('x', [1, 8, 7, channels]), graph.input('w', [3, 3, channels, outputs]), { padding: 1, upsample });
    const program = await compile(engine, graph, { outputs: [y] });
    const { file } = program.steps[0]!.info;
    program.destroy();
    return file === 'unfold.wgsl';
  };
  expect(await unfolded(3, 64)).toBe(true);
  expect(await unfolded(8, 20)).toBe(true);
  expect(await unfolded(8, 16)).toBe(false);
  expect(await unfolded(9, 64)).toBe(false);
  expect(await unfolded(3, 64, true)).toBe(false);
  expect(await unfolded(4, 16)).toBe(engine.profile.subgroupSize !== 8);
});
