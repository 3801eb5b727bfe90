import { afterAll, expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { Graph } from '../../src/engine/graph';
import { compile } from '../../src/engine/program';
import { DiffusionProcess } from '../../src/sampler/diffusion_process';
import { makeBetas } from '../../src/sampler/schedules';
import { diffusionLoss, StepCoefficients, type LossConfig } from '../../src/train/loss';
import { testDevice } from '../helpers/device';

const engine = await Engine.create({ device: await testDevice() });
afterAll(() => engine.destroy());

const distance: Record<string, (d: number) => number> = {
  mse: (d) => d * d,
  l1: Math.abs,
  huber: (d) => (Math.abs(d) <= 0.4 ? (d * d) / 2 : 0.4 * (Math.abs(d) - 0.2)),
};

test.each(['mse', 'l1', 'huber'] as const)('%s of the difference to v, weighted by min-SNR', async (kind) => {
  const process = new DiffusionProcess(makeBetas('linear', 100, 1e-3, 0.05));
  const config: LossConfig = { predictionType: 'v_prediction', minSnrGamma: 3, kind, huberDelta: 0.4 };
  const shape = [2, 3, 2, 2] as const;
  const numbers = (seed: number) => Float32Array.from({ length: 24 }, (_, i) => Math.sin(seed + 1.7 * i));
  const values = { x0: numbers(1), noise: numbers(2), output: numbers(3) };
  const t = [4, 70];

  const graph = new Graph();
  const leaf = (name: keyof typeof values) => graph.input(name, shape);
  const steps = graph.input('t', [2], 'i32');
  const [x0, noise, output] = [leaf('x0'), leaf('noise'), leaf('output')];
  const { loss, perSample } = diffusionLoss(new StepCoefficients(process, config, steps), config, { x0, noise, xt: x0, output });
  const program = await compile(engine, graph, { outputs: [loss, perSample], label: 'loss' });
  for (const input of [x0, noise, output]) program.write(input, values[input.name as keyof typeof values]);
  program.write(steps, Int32Array.from(t));
  program.run();

  const expected = t.map((at, n) => {
    const { signal, noise: sigma } = process.qSample(at);
    const snr = process.snr(at);
    const of = (i: number) => distance[kind]!(values.output[i]! - (signal * values.noise[i]! - sigma * values.x0[i]!));
    const mean = Array.from({ length: 12 }, (_, i) => of(12 * n + i)).reduce((a, b) => a + b) / 12;
    return (Math.min(snr, 3) / (snr + 1)) * mean;
  });
  const actual = await program.read(perSample);
  expected.forEach((value, n) => expect(actual[n]).toBeCloseTo(value, 5));
  expect((await program.read(loss))[0]).toBeCloseTo((expected[0]! + expected[1]!) / 2, 5);
  program.destroy();
});
