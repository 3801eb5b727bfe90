import { existsSync, readdirSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { afterAll, describe, expect, test } from 'vitest';
import { Engine } from '../src/engine/device';
import { testDevice } from './helpers/device';
import { goldenPath } from './helpers/golden';
import { modelGoldens, pipelineCases, pipelineGoldens, schedulerGoldens, trainingGoldens, modelCases } from './helpers/golden_cases';

const engine = await Engine.create({ device: await testDevice() });
// Default limits: what runs there runs everywhere.
const defaultEngine = await Engine.create({ device: await testDevice({ limits: 'default' }) });
afterAll(() => {
  engine.destroy();
  defaultEngine.destroy();
});

const read = (path: string) => readFile(goldenPath(path));

describe('models', () => {
  test('every folder with a model is listed', () => {
    const folders = readdirSync(goldenPath()).filter((dir) => !dir.startsWith('train_') && existsSync(goldenPath(dir, 'config.json')));
    expect(folders).toEqual([...modelCases]);
  });
  for (const check of modelGoldens(read)) test(check.name, () => check.run(engine));
});

describe('schedulers of diffusers 0.21.4', async () => {
  for (const check of await schedulerGoldens(read)) test(check.name, () => check.run(defaultEngine));
});

describe('pipelines', () => {
  test('every folder with runs is listed', () => {
    expect(Object.keys(pipelineCases).sort()).toEqual(readdirSync(goldenPath()).filter((dir) => existsSync(goldenPath(dir, 'runs'))).sort());
  });
  for (const check of pipelineGoldens(read)) test(check.name, { timeout: 600_000 }, () => check.run(defaultEngine));
});

describe('training', () => {
  for (const check of trainingGoldens(read)) test(check.name, () => check.run(engine));
});
