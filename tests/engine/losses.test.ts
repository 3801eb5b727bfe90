import { afterAll, expect, test } from 'vitest';
import { gradients } from '../../src/engine/autodiff';
import { Engine } from '../../src/engine/device';
import { Graph, type Tensor } from '../../src/engine/graph';
import { huberLoss, l1Loss, mseLoss, norm, type Reduction } from '../../src/engine/ops/losses';
import { mul } from '../../src/engine/ops/pointwise';
import { total } from '../../src/engine/ops/sum';
import { compile } from '../../src/engine/program';
import { testDevice } from '../helpers/device';
import { assertClose, normal, random } from '../helpers/op_suite';

const engine = await Engine.create({ device: await testDevice() });
afterAll(() => engine.destroy());

const shape = [3, 5, 4, 2];
const each = 40;
const rand = random(1);
const prediction = Float32Array.from({ length: 120 }, () => normal(rand));
const target = Float32Array.from({ length: 120 }, () => normal(rand));
const weights = Float32Array.of(0.5, 2, -1);

const losses: [string, (p: Tensor, t: Tensor, r: Reduction) => Tensor, (d: number) => number, (d: number) => number][] = [
  ['mse', (p, t, r) => mseLoss(p, t, r), (d) => d * d, (d) => 2 * d],
  ['l1', (p, t, r) => l1Loss(p, t, r), Math.abs, Math.sign],
  ['huber', (p, t, r) => huberLoss(p, t, 0.7, r), (d) => (Math.abs(d) <= 0.7 ? d * d / 2 : 0.7 * (Math.abs(d) - 0.35)), (d) => (Math.abs(d) <= 0.7 ? d : 0.7 * Math.sign(d))],
];

test.each(losses)('%s loss: mean, per-sample means and gradient', async (_, loss, value, derivative) => {
  const graph = new Graph();
  const p = graph.input('prediction', shape);
  const t = graph.input('target', shape);
  const mean = loss(p, t, 'mean');
  const perSample = loss(p, t, 'none');
  expect(mean.shape).toEqual([1]);
  expect(perSample.shape).toEqual([3]);
  const weighted = total(mul(perSample, graph.constant('weights', [3], weights)));
  const [dMean] = gradients(mean, [p]);
  const [dWeighted, dTarget] = gradients(weighted, [p, t]);
  const program = await compile(engine, graph, { outputs: [mean, perSample, dMean!, dWeighted!, dTarget!], poison: true });
  program.write(p, prediction);
  program.write(t, target);
  program.run();
  const d = Float64Array.from(prediction, (v, i) => v - target[i]!);
  const values = d.map(value);
  assertClose('mean', await program.read(mean), [values.reduce((a, b) => a + b) / 120], 1e-6);
  assertClose('none', await program.read(perSample), [0, 1, 2].map((n) => values.slice(n * each, (n + 1) * each).reduce((a, b) => a + b) / each), 1e-6);
  assertClose('gradient of the mean', await program.read(dMean!), d.map((v) => derivative(v) / 120), 1e-6);
  const expected = d.map((v, i) => (derivative(v) * weights[Math.floor(i / each)]!) / each);
  assertClose('weighted gradient', await program.read(dWeighted!), expected, 1e-6);
  assertClose('gradient of the target', await program.read(dTarget!), expected.map((v) => -v), 1e-6);
  program.destroy();
});

test('norm and its gradient', async () => {
  const graph = new Graph();
  const x = graph.input('x', shape);
  const y = norm(x);
  const [dx] = gradients(y, [x]);
  const program = await compile(engine, graph, { outputs: [y, dx!] });
  program.write(x, prediction);
  program.run();
  const length = Math.hypot(...prediction);
  assertClose('norm', await program.read(y), [length], 1e-6);
  assertClose('gradient', await program.read(dx!), prediction.map((v) => v / length), 1e-6);
  program.destroy();
});

test('mistakes are explained', () => {
  const graph = new Graph();
  expect(() => mseLoss(graph.input('a', [2, 3]), graph.input('b', [3]))).toThrow('mseLoss: prediction [2,3] and target [3] must have the same shape');
  expect(() => huberLoss(graph.input('a', [2]), graph.input('b', [2]), 0)).toThrow('delta 0 must be above 0');
});
