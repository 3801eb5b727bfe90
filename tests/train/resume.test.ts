import { spawn } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openEngine } from '../../cli/engine';
import { runTraining } from '../../src/node/train_run';
import { listCheckpoints, loadCheckpoint } from '../../src/node/run_directory';
import { parseTrainConfig } from '../../src/train/config';
import { long } from '../helpers/mode';

// As the command line's, whose processes the runs are compared with.
const engine = await openEngine();
let dir: string;
let recipe: string;

// The smallest model that has every kind of state: labels dropped by chance, dropout, EMA, moments, a schedule.
const tiny = {
  model: { sample_size: 28, in_channels: 1, out_channels: 1, down_block_types: ['DownBlock2D', 'DownBlock2D'], up_block_types: ['UpBlock2D', 'UpBlock2D'], block_out_channels: [4, 8], layers_per_block: 1, norm_num_groups: 2, add_attention: false, num_class_embeds: 11, dropout: 0.1 },
  scheduler: { _class_name: 'DDPMScheduler', prediction_type: 'v_prediction' },
  data: { source: 'mnist' },
  train: { steps: 8, batch_size: 2, learning_rate: 1e-3, lr_schedule: 'cosine', condition_dropout: 0.2, log_every: 2, checkpoint_every: 3, sample_every: 8, seed: 5 },
};

beforeAll(async () => {
  dir = await mkdtemp(path.join(tmpdir(), 'bruit-resume-'));
  recipe = path.join(dir, 'recipe.json');
  await writeFile(recipe, JSON.stringify(tiny));
});
afterAll(async () => {
  await rm(dir, { recursive: true, force: true });
  engine.destroy();
});

/** Bytes of every file of a run's newest checkpoint, and the run's losses. */
async function result(run: string) {
  const newest = (await listCheckpoints(run)).at(-1)!;
  const files: Record<string, string> = {};
  for (const name of (await readdir(newest.path, { recursive: true })).sort()) {
    const bytes = await readFile(path.join(newest.path, name)).catch(() => undefined);
    if (bytes) files[name] = bytes.toString('base64');
  }
  const losses = (await readFile(path.join(run, 'metrics.jsonl'), 'utf8')).trim().split('\n').map((line) => (JSON.parse(line) as { step: number; loss: number }));
  return { step: newest.step, files, losses: losses.map(({ step, loss }) => [step, loss]) };
}

test('stopping and resuming gives the same bytes as not having stopped', async () => {
  const [whole, parts] = [path.join(dir, 'whole'), path.join(dir, 'parts')];
  const done = await runTraining(engine, { recipe, out: whole });
  expect(done.steps).toBe(8);
  expect(await readdir(path.join(whole, 'samples'))).toEqual(['step-00000008.png']);
  await runTraining(engine, { recipe, out: parts, stopAfter: 3 });
  await runTraining(engine, { recipe, out: parts, stopAfter: 5, resume: true });
  await runTraining(engine, { recipe, out: parts, resume: true });
  expect(await result(parts)).toEqual(await result(whole));
});

test('a run is never overwritten by accident', async () => {
  const out = path.join(dir, 'whole');
  await expect(runTraining(engine, { recipe, out })).rejects.toThrow(/already holds a training run.*--resume/);
  await expect(runTraining(engine, { recipe, out: path.join(dir, 'none'), resume: true })).rejects.toThrow(/no finished checkpoint/);
});

test('killed at any moment, the last checkpoint is whole and the run goes on to the same end', async () => {
  const out = path.join(dir, 'killed');
  const command = ['bin/bruit.mjs', '--adapter', process.env.BRUIT_ADAPTER_ACTIVE ?? 'swiftshader', 'train', recipe, '--out', out];
  const run = (extra: string[], killAfter?: number) =>
    new Promise<number | null>((resolve) => {
      const child = spawn(process.execPath, [...command, ...extra], { stdio: ['ignore', 'ignore', 'pipe'], detached: true });
      let armed = false;
      child.stderr.on('data', (text: Buffer) => {
        // The clock starts with the first step, so that the kill falls among steps and checkpoints.
        if (killAfter === undefined || armed || !text.toString().includes('train')) return;
        armed = true;
        const timer = setTimeout(() => process.kill(-child.pid!, 'SIGKILL'), killAfter);
        child.once('exit', () => clearTimeout(timer));
      });
      child.on('close', resolve);
    });
  let resume: string[] = [];
  let finished = 0;
  const moments = long ? Array.from({ length: 240 }, () => Math.random() * 1500) : [40, 150, 400];
  for (const milliseconds of moments) {
    if ((await run(resume, milliseconds)) === 0) {
      // Done before the kill: compared, and begun anew.
      expect(await result(out)).toEqual(await result(path.join(dir, 'whole')));
      await rm(out, { recursive: true });
      finished++;
    }
    for (const c of await listCheckpoints(out)) expect((await loadCheckpoint(c.path, parseTrainConfig(tiny, 'recipe'))).state.step).toBe(c.step);
    resume = (await listCheckpoints(out)).length ? ['--resume'] : ['--overwrite'];
  }
  if (long) console.log(`${moments.length - finished} kills, ${finished} runs to the end`);
  // Some runs end before they are killed.
  if (long) expect(moments.length - finished).toBeGreaterThanOrEqual(200);
  expect(await run(resume)).toBe(0);
  const [killed, whole] = [await result(out), await result(path.join(dir, 'whole'))];
  expect(killed).toEqual(whole);
  // Four processes (240 in the long version), each with a driver to start and pipelines to compile.
}, long ? 7_200_000 : 400_000);
