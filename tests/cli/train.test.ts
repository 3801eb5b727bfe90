/** `bruit train --recover` and `--debug-nan`, in processes of their own. */
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { beforeAll, expect, test } from 'vitest';
import { bruit, temporary, type Exit } from './bruit';

const base = {
  model: { sample_size: 28, in_channels: 1, out_channels: 1, down_block_types: ['DownBlock2D', 'DownBlock2D'], up_block_types: ['UpBlock2D', 'UpBlock2D'], block_out_channels: [4, 8], layers_per_block: 1, norm_num_groups: 2, add_attention: false },
  scheduler: { _class_name: 'DDPMScheduler' },
  data: { source: 'mnist' },
};

let dir: string;
beforeAll(async () => {
  dir = await temporary();
});

/** Trains by a recipe of a few steps. */
async function train(name: string, settings: object, ...options: string[]): Promise<Exit & { out: string }> {
  const recipe = join(dir, `${name}.json`);
  await writeFile(recipe, JSON.stringify({ ...base, train: { steps: 6, batch_size: 2, learning_rate: 1e-3, log_every: 1, checkpoint_every: 2, seed: 5, ...settings } }));
  const out = join(dir, name);
  return { ...(await bruit('train', recipe, '--out', out, ...options)), out };
}

/** Metrics and weights of a run. */
async function result(out: string): Promise<{ metrics: unknown; weights: Buffer }> {
  const checkpoint = (await readdir(out)).filter((name) => name.startsWith('checkpoint-')).sort().at(-1)!;
  const metrics = (await readFile(join(out, 'metrics.jsonl'), 'utf8')).trim().split('\n').map((line) => (({ step, loss }) => [step, loss])(JSON.parse(line) as { step: number; loss: number }));
  return { metrics, weights: await readFile(join(out, checkpoint, 'unet', 'diffusion_pytorch_model.safetensors')) };
}

test('--recover: a device lost in the middle changes no bit of the run; without it the run ends with what to do', async () => {
  const whole = await train('whole', {});
  expect(whole).toMatchObject({ code: 0 });
  const saved = process.env.NODE_OPTIONS;
  process.env.NODE_OPTIONS = `${saved ?? ''} --import ${pathToFileURL(join(import.meta.dirname, 'lose_device.mjs')).href}`;
  process.env.LOSE_AFTER = '12'; // weights, and a few steps
  try {
    const lost = await train('lost', {});
    expect(lost.code).toBe(1);
    expect(lost.stderr).toMatch(/The GPU device was lost/);
    const recovered = await train('recovered', {}, '--recover');
    expect(recovered).toMatchObject({ code: 0, stderr: expect.stringMatching(/The GPU device was lost \([^)]*\): beginning anew on another device/) });
    expect(await result(recovered.out)).toEqual(await result(whole.out));
  } finally {
    delete process.env.LOSE_AFTER;
    if (saved === undefined) delete process.env.NODE_OPTIONS;
    else process.env.NODE_OPTIONS = saved;
  }
}, 300_000);

test('--debug-nan: a run whose weights run away stops at the layer that shows it, or skips the steps and says so', async () => {
  const settings = { learning_rate: 1e37, max_grad_norm: 0, steps: 3 };
  const stopped = await train('stopped', settings, '--debug-nan', 'stop');
  expect(stopped.code).toBe(1);
  expect(stopped.stderr).toMatch(/training step 1: \w+ \([\w.]+\) \[[\d,]+\] is the first to hold a NaN or an infinity\. The last checkpoint/);
  const skipped = await train('skipped', settings, '--debug-nan', 'skip');
  expect(skipped.code).toBe(0);
  expect(skipped.stderr.match(/step \d was skipped: \w+ \([\w.]+\) \[[\d,]+\] is the first to hold/g)).toHaveLength(2);
}, 300_000);
