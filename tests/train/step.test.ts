import { readFile } from 'node:fs/promises';
import { afterAll, expect, test } from 'vitest';
import { Engine } from '../../src/engine/device';
import { testDevice } from '../helpers/device';
import { goldenPath } from '../helpers/golden';
import type { TrainingStep, TrainingStepConfig } from '../../src/train/step';
import { createTrainingStep, loadTrainingGolden, runTrainingStep, type TrainingGolden } from '../helpers/golden_cases';
import { assertClose } from '../helpers/op_suite';

const engine = await Engine.create({ device: await testDevice() });
afterAll(() => engine.destroy());

const read = (path: string) => readFile(goldenPath(path));

test('accumulated over two halves of the batch, the same gradients and weights', async () => {
  const r = await loadTrainingGolden(read, 'unet2d_cifar_tiny', 'train.json', 'train.safetensors');
  const whole = await createTrainingStep(engine, r);
  const shape = r.io.tensors.get('0.x0')!.shape as unknown as [number, number, number, number];
  const halves = await createTrainingStep(engine, r, { accumulation: 2, batch: [shape[0] / 2, shape[1], shape[2], shape[3]] });
  for (let k = 0; k < 2; k++) {
    await runTrainingStep(whole, r.io, k);
    const [x0, noise, t] = [await r.io.readF32(`${k}.x0`), await r.io.readF32(`${k}.noise`), await r.io.readI32(`${k}.t`)];
    for (let h = 0; h < 2; h++) {
      const part = <T extends Float32Array | Int32Array>(x: T): T => x.slice((h * x.length) / 2, ((h + 1) * x.length) / 2) as T;
      halves.write({ images: part(x0), noise: part(noise), t: part(t) });
      halves.run();
    }
    halves.update();
  }
  const expected = new Map((await whole.weights.readAll()).map((t) => [t.name, t.data]));
  for (const t of await halves.weights.readAll()) {
    if (`param.${t.name}` in r.json.not_determined_in_float32!) continue;
    // Adam's steps have the size of the learning rate; rounding shifts them by a small share.
    t.data.forEach((v, i) => expect(Math.abs(v - expected.get(t.name)![i]!), t.name).toBeLessThan(0.2 * r.json.optimizer.lr));
  }
  const [a, b] = [await whole.metrics(0), await halves.metrics(0)];
  expect(b.length).toBe(2);
  b.forEach((m, i) => expect(Math.abs(m.loss - a[i]!.loss)).toBeLessThan(1e-5));
  whole.destroy();
  halves.destroy();
});

/** A step of the tiny U-Net on random images, drawing its own time steps and noise. */
async function createOwn(r: TrainingGolden, overrides: Partial<TrainingStepConfig> = {}): Promise<TrainingStep> {
  return createTrainingStep(engine, r, { recordedDraws: false, learningRates: new Float64Array(50).fill(1e-3), ...overrides });
}

test('draws of its own repeat bit for bit, and differ from step to step', async () => {
  const r = await loadTrainingGolden(read, 'train_unet2d_vpred', 'case.json', 'io.safetensors');
  const [a, b] = [await createOwn(r), await createOwn(r)];
  const images = await r.io.readF32('0.x0');
  let last: Float32Array | undefined;
  for (let k = 0; k < 3; k++) {
    for (const s of [a, b]) {
      s.write({ images });
      s.run();
    }
    const [xa, xb] = [await a.read(a.values.xt), await b.read(b.values.xt)];
    expect(xa).toEqual(xb);
    if (last) expect(xa).not.toEqual(last);
    last = xa;
  }
  expect(await a.weights.readAll()).toEqual(await b.weights.readAll());
  a.destroy();
  b.destroy();
});

test('gradient checkpointing: the same gradients from less memory', async () => {
  const r = await loadTrainingGolden(read, 'unet2d_cifar_tiny', 'train.json', 'train.safetensors');
  const [plain, saving] = [await createTrainingStep(engine, r), await createTrainingStep(engine, r, { gradientCheckpointing: true })];
  for (const s of [plain, saving]) await runTrainingStep(s, r.io, 0);
  const expected = new Map((await plain.gradients.readAll()).map((t) => [t.name, t.data]));
  for (const t of await saving.gradients.readAll()) assertClose(`gradient ${t.name}`, t.data, expected.get(t.name)!, 1e-5);
  expect(saving.plan.peakLiveBytes).toBeLessThan(plain.plan.peakLiveBytes);
  plain.destroy();
  saving.destroy();
});

test('a step creates no GPU objects', async () => {
  const r = await loadTrainingGolden(read, 'train_unet2d_vpred', 'case.json', 'io.safetensors');
  const step = await createOwn(r);
  const { device } = engine;
  const made: string[] = [];
  const wrapped = ['createBuffer', 'createBindGroup', 'createComputePipelineAsync', 'createShaderModule'] as const;
  for (const name of wrapped) {
    const original = (device[name] as (...args: unknown[]) => unknown).bind(device);
    Object.defineProperty(device, name, { configurable: true, value: (...args: unknown[]) => (made.push(name), original(...args)) });
  }
  const before = engine.liveBytes;
  for (let k = 0; k < 3; k++) {
    step.write({ images: await r.io.readF32('0.x0') });
    step.run();
  }
  await step.done();
  for (const name of wrapped) Reflect.deleteProperty(device, name);
  expect(made).toEqual([]);
  expect(engine.liveBytes).toBe(before);
  step.destroy();
});

test.skipIf(!engine.profile.f16)('mixed precision: f16 activations, dynamic loss scale, a loss close to that in f32', async () => {
  const r = await loadTrainingGolden(read, 'unet2d_cifar_tiny', 'train.json', 'train.safetensors');
  const step = await createTrainingStep(engine, r, { mixedPrecision: true });
  await runTrainingStep(step, r.io, 0);
  const [metrics] = await step.metrics(0);
  expect(metrics!.skipped).toBe(false);
  // f16 keeps 11 bits; the golden is f32.
  assertClose('loss', [metrics!.loss], await r.io.readF32('0.loss'), 5e-3);
  assertClose('gradient norm', [metrics!.gradNorm], await r.io.readF32('grad_norm'), 2e-2);
  step.destroy();
});

test('a loss that is not finite moves no weight and is counted', async () => {
  const r = await loadTrainingGolden(read, 'train_unet2d_vpred', 'case.json', 'io.safetensors');
  const step = await createOwn(r);
  const before = await step.weights.readAll();
  step.write({ images: (await r.io.readF32('0.x0')).fill(3e38) });
  step.run();
  const [metrics] = await step.metrics(0);
  expect(metrics!.skipped).toBe(true);
  expect(await step.weights.readAll()).toEqual(before);
  step.write({ images: await r.io.readF32('0.x0') });
  step.run();
  expect((await step.metrics(1))[0]!.skipped).toBe(false);
  step.destroy();
});
