import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { accuracy, allDigits, loadJudge, type Judge } from '../judge/classifier';
import { evaluate, readSamples } from '../judge/evaluate';
import { judgeScenes } from '../judge/scenes';
import { bundledModel } from '../cli/sample';
import { planScene } from '../src/data/scenes';
import { directory } from '../src/node/directory';
import { StableDiffusionPipeline } from '../src/pipelines/stable_diffusion';
import { fitGaussian, frechetDistance, type Gaussian } from '../src/verify/frechet_distance';
import { Engine } from '../src/engine/device';
import { bytesSource } from '../src/io/source';
import { openSafetensors, writeSafetensors } from '../src/io/safetensors';
import { loadMnist, type DatasetSplit } from '../src/node/mnist';
import { testDevice } from './helpers/device';
import { goldenJson } from './helpers/golden';
import { assertClose } from './helpers/op_suite';

interface Case {
  features_a: number[][];
  features_b: number[][];
  mean_a: number[];
  mean_b: number[];
  cov_a: number[][];
  cov_b: number[][];
  frechet_distance: number;
}

describe('Fréchet distance', () => {
  const { cases } = goldenJson<{ cases: Record<string, Case> }>('frechet', 'case.json');

  test.each(Object.entries(cases))('%s agrees with scipy', (_, c) => {
    const [a, b] = [c.features_a, c.features_b].map((rows) => fitGaussian(rows.flat(), rows[0]!.length)) as [Gaussian, Gaussian];
    assertClose('mean_a', a.mean, c.mean_a, 1e-13);
    assertClose('mean_b', b.mean, c.mean_b, 1e-13);
    assertClose('cov_a', a.covariance, c.cov_a.flat(), 1e-13);
    assertClose('cov_b', b.covariance, c.cov_b.flat(), 1e-13);
    expect(Math.abs(frechetDistance(a, b) / c.frechet_distance - 1)).toBeLessThan(1e-6);
    expect(Math.abs(frechetDistance(b, a) / c.frechet_distance - 1)).toBeLessThan(1e-6);
    expect(Math.abs(frechetDistance(a, a))).toBeLessThan(1e-6);
  });

  test('of diagonal Gaussians is that of their means and deviations', () => {
    const a = { mean: Float64Array.of(1, 2), covariance: Float64Array.of(4, 0, 0, 9) };
    const b = { mean: Float64Array.of(3, 2), covariance: Float64Array.of(1, 0, 0, 0) };
    expect(frechetDistance(a, b)).toBeCloseTo(4 + 1 + 9, 12);
  });

  test('refuses what has no covariance', () => {
    expect(() => fitGaussian([1, 2, 3], 3)).toThrow(/two samples or more/);
    expect(() => fitGaussian([1, 2, 3], 2)).toThrow(/no features of width 2/);
  });
});

describe('judge', () => {
  let engine: Engine;
  let judge: Judge;
  let digits: DatasetSplit;
  beforeAll(async () => {
    engine = await Engine.create({ device: await testDevice() });
    judge = await loadJudge(engine);
    digits = await loadMnist();
  });
  afterAll(() => {
    judge.classifier.destroy();
    engine.destroy();
  });

  test('reads 98% of the held-back digits, as its file says', async () => {
    const { images, labels } = await allDigits(digits.heldBack);
    const share = accuracy((await judge.classifier.read(images)).digits, labels);
    expect(share).toBeGreaterThanOrEqual(0.98);
    expect(Math.abs(share - Number(judge.metadata['accuracy_held_back']))).toBeLessThanOrEqual(0.002);
  });

  const samples = async (images: Float32Array, size: number, labels: ArrayLike<number>) =>
    readSamples(
      await openSafetensors(
        bytesSource(
          writeSafetensors([
            { name: 'images', dtype: 'F32', shape: [labels.length, 1, size, size], data: images },
            { name: 'labels', dtype: 'I64', shape: [labels.length], data: Int32Array.from(labels) },
          ]),
        ),
      ),
    );

  /** Every ninetieth training digit. */
  async function realSamples() {
    const items = await Promise.all(Array.from({ length: 100 }, (_, i) => digits.train.get(90 * i)));
    const images = new Float32Array(items.length * 784);
    items.forEach(({ image }, i) => images.set(image.map((v) => (v + 1) / 2), i * 784));
    return { images, labels: items.map((item) => item.label) };
  }

  test('passes real digits, fails wrong labels and lack of variety', async () => {
    const { images, labels } = await realSamples();
    const real = await evaluate(judge, await samples(images, 28, labels), digits);
    expect(real).toMatchObject({ images: 100, frechetImages: 100, passed: true });
    expect(real.accuracyPerClass.every((share) => share !== null && share >= 0.8)).toBe(true);

    const mislabelled = await evaluate(judge, await samples(images, 28, labels.map((label) => (label + 1) % 10)), digits);
    expect(mislabelled.accuracy).toBeLessThan(0.05);
    expect(mislabelled.passed).toBe(false);
    expect(mislabelled.frechetDistance).toBe(real.frechetDistance);

    // One image per digit, over and over: legible, but always the same.
    const first = labels.map((label) => labels.indexOf(label));
    const copies = new Float32Array(images.length);
    first.forEach((from, to) => copies.set(images.subarray(from * 784, (from + 1) * 784), to * 784));
    const dull = await evaluate(judge, await samples(copies, 28, labels), digits);
    expect(dull.accuracy).toBeGreaterThan(0.9);
    expect(dull.ratio).toBeGreaterThan(4);
    expect(dull.passed).toBe(false);
  });

  test('crops 32x32 by 2', async () => {
    const images = Float32Array.from({ length: 2 * 32 * 32 }, (_, i) => (i % 1024) / 1024);
    const { images: cropped } = await samples(images, 32, [0, 9]);
    expect(cropped.length).toBe(2 * 784);
    expect(cropped[0]).toBe(images[2 * 32 + 2]);
    expect(cropped[783]).toBe(images[29 * 32 + 29]);
  });

  test.each([
    ['another size', new Float32Array(2 * 900), 30, [0, 1], /images are \[2,1,30,30\]/],
    ['signed pixels', new Float32Array(2 * 784).fill(-1), 28, [0, 1], /pixel 0 is -1/],
    ['no digit', new Float32Array(2 * 784), 28, [0, 10], /label 1 is 10/],
    ['one image', new Float32Array(784), 28, [0], /too few/],
  ])('refuses %s', async (_, images, size, labels, message) => {
    await expect(samples(images, size, labels)).rejects.toThrow(message);
  });
});

test('the bundled text-to-image model answers prompts that training never saw', { timeout: 300_000 }, async () => {
  const engine = await Engine.create({ device: await testDevice() });
  const { classifier } = await loadJudge(engine);
  const pipeline = await StableDiffusionPipeline.fromFolder(engine, directory(bundledModel('scenes')));
  try {
    const plans = Array.from({ length: 32 }, (_, i) => planScene(0, i, true));
    const { data } = await pipeline.generate({ prompt: plans.map((plan) => plan.caption), num_inference_steps: 15, seed: 0 });
    // `npm run judge:text` asks 300 with 25 steps.
    expect((await judgeScenes(classifier, data, plans)).accuracy).toBeGreaterThanOrEqual(0.8);
    expect((await judgeScenes(classifier, data, [...plans.slice(1), plans[0]!])).accuracy).toBeLessThan(0.25);
  } finally {
    pipeline.destroy();
    classifier.destroy();
    engine.destroy();
  }
});
