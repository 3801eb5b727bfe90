import { expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { Graph } from '../../src/engine/graph';
import { conv2d, conv2dGradInputOp, conv2dOp } from '../../src/engine/ops/conv2d';
import { add, mul, silu } from '../../src/engine/ops/pointwise';
import { compile } from '../../src/engine/program';
import { numel } from '../../src/engine/shape';
import { describeOps } from '../helpers/describe_ops';
import { testDevice } from '../helpers/device';
import { assertClose } from '../helpers/op_suite';

await describeOps('conv2d');

const engine = await Engine.create({ device: await testDevice() });

test.runIf(engine.profile.kind === 'software')('software adapters without subgroups of 8 unfold few channels to more than twice as many, where a tile of theirs is not mostly empty and taps are not shared along rows', async () => {
  const pays = engine.profile.subgroupSize !== 8;
  const unfolded = async (channels: number, outputs: number, upsample = false) => {
    const graph = new Graph();
    const y = conv2d(graph.input('x', [1, 8, 7, channels]), graph.input('w', [3, 3, channels, outputs]), { padding: 1, upsample });
    const program = await compile(engine, graph, { outputs: [y] });
    const { file } = program.steps[0]!.info;
    program.destroy();
    return file === 'unfold.wgsl';
  };
  expect(await unfolded(3, 64)).toBe(pays);
  expect(await unfolded(8, 20)).toBe(pays);
  expect(await unfolded(8, 16)).toBe(false);
  expect(await unfolded(9, 64)).toBe(false);
  expect(await unfolded(3, 64, true)).toBe(false);
  expect(await unfolded(4, 16)).toBe(pays);
});

test.each(conv2dOp.variants!)('%s: activation and residual in the store, forward and in the gradient of the input', async (variant) => {
  const run = async (forced: string) => {
    const graph = new Graph();
    const leaves = [graph.input('x', [1, 6, 8, 12]), graph.input('w', [3, 3, 12, 12]), graph.input('bias', [12])] as const;
    const [x, w, bias] = leaves;
    const y = add(silu(add(conv2d(x, w, { padding: 1 }), bias)), x);
    const dx = mul(silu(graph.add1(conv2dGradInputOp, [y, w], { stride: 1, padding: [1, 1, 1, 1], upsample: false, size: [6, 8] })), x);
    const program = await compile(engine, graph, { outputs: [y, dx], variants: { conv2d: forced, conv2d_grad_input: forced } });
    for (const [i, t] of leaves.entries()) program.write(t, Float32Array.from({ length: numel(t.shape) }, (_, k) => Math.sin(k * (i + 2))));
    program.run();
    const values = [await program.read(y), await program.read(dx)] as const;
    expect(program.steps.map(({ info }) => info.file)).not.toContain('pointwise.wgsl');
    program.destroy();
    return values;
  };
  const [expected, actual] = [await run('direct'), await run(variant)];
  actual.forEach((value, i) => assertClose(variant, value, expected[i]!, 1e-5));
});
