/** The layer that makes the first NaN or infinity is found and named. */
import { expect, test } from 'vitest';
import { BatchLoader, type ImageDataset } from '../../src/data/dataset';
import { Engine } from '../../src/engine/device';
import { Graph } from '../../src/engine/graph';
import { NanProbe } from '../../src/engine/nan_probe';
import { matmul } from '../../src/engine/ops/matmul';
import { add, cast, mul, silu } from '../../src/engine/ops/pointwise';
import { softmax } from '../../src/engine/ops/softmax';
import { compile } from '../../src/engine/program';
import { parseTrainConfig } from '../../src/train/config';
import { Trainer } from '../../src/train/trainer';
import { testDevice } from '../helpers/device';

const engine = await Engine.create({ device: await testDevice() });

test.each(['f32', ...(engine.profile.f16 ? ['f16'] : [])] as ('f32' | 'f16')[])('the first layer that makes one, among those that pass it on, in %s', async (dtype) => {
  const graph = new Graph();
  const x = graph.input('x', [70, 70]);
  const big = graph.input('big', [1]);
  const start = graph.scope('start', () => matmul(cast(x, dtype), cast(x, dtype)));
  const grown = graph.scope('blocks.3', () => matmul(mul(start, cast(big, dtype)), start));
  const end = graph.scope('end', () => softmax(add(silu(grown), start)));
  const probe = new NanProbe();
  const program = await compile(engine, graph, { outputs: [end], probe });
  // One element in 4900 overflows: row 69 is the only large one.
  const values = new Float32Array(4900).fill(0.01);
  values[4899] = 1;
  program.write(x, values);
  const run = async (scale: number) => {
    program.write(big, Float32Array.of(scale));
    program.run();
    return probe.firstNonFinite(program);
  };
  expect(await run(1)).toBeUndefined();
  expect(await run(dtype === 'f16' ? 6e4 : 3e38)).toBeUndefined();
  program.write(x, values.map((v) => v * 16));
  expect(await run(dtype === 'f16' ? 6e4 : 3e38)).toMatchObject({ path: 'blocks.3', shape: [70, 70] });
  await expect(probe.assertFinite(program, 'run 4')).resolves.toBeUndefined();
  program.run();
  await expect(probe.assertFinite(program, 'run 5')).rejects.toMatchObject({ code: 'nan', message: expect.stringMatching(/^run 5: \w+ \(blocks\.3\) \[70,70\] is the first to hold a NaN or an infinity$/) });
  program.destroy();
});

test('training stops at the step and names the layer, or skips the step', async () => {
  const model = { sample_size: 4, in_channels: 1, out_channels: 1, down_block_types: ['DownBlock2D'], up_block_types: ['UpBlock2D'], block_out_channels: [4], layers_per_block: 1, norm_num_groups: 2, add_attention: false, mid_block_type: null };
  const config = parseTrainConfig({ model, scheduler: { _class_name: 'DDPMScheduler', num_train_timesteps: 20 }, data: {}, train: { steps: 4, batch_size: 2, log_every: 1 } }, 'recipe');
  // Batches come in order: the third holds an infinite pixel.
  const images: ImageDataset = { name: 'damaged', length: 8, shape: [1, 4, 4], classes: undefined, get: async (i) => ({ image: new Float32Array(16).fill(i === 4 ? Infinity : i / 8), label: 0 }) };
  const run = async (debugNan: 'stop' | 'skip') => {
    const trainer = await Trainer.create(engine, config, images, new BatchLoader(images, { batchSize: 2, shuffle: false }), {}, { debugNan });
    const skipped: boolean[] = [];
    const found: unknown[] = [];
    try {
      await trainer.train({ onMetrics: (metrics) => void skipped.push(...metrics.map((m) => m.skipped)), onNonFinite: ({ op, path }, step) => void found.push({ op, path, step }) });
      const { weights } = await trainer.readTensors();
      expect(weights.every((t) => t.data.every(Number.isFinite))).toBe(true);
    } finally {
      trainer.destroy();
    }
    return { skipped, found };
  };
  // x_t is made of the image: the first thing that a step computes from it.
  await expect(run('stop')).rejects.toMatchObject({ code: 'nan', message: expect.stringMatching(/^training step 2: \w+ \[2,(1,)?4,4(,1)?\] is the first to hold a NaN or an infinity\. The last checkpoint/) });
  expect(await run('skip')).toEqual({ skipped: [false, false, true, false], found: [{ op: expect.any(String), path: '', step: 2 }] });
}, 300_000);
