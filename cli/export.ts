import { existsSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import path from 'node:path';
import type { Command } from 'commander';
import { BruitError } from '../src/engine/errors';
import { writableFolder, writeFileAtomic } from '../src/node/files';
import { readMetrics } from '../src/node/plot';
import { exportCheckpoint, readTrainerState } from '../src/node/run_directory';
import { number } from './arguments';
import { print } from './engine';

interface Options {
  out: string;
  half?: boolean;
  guidance?: number;
  overwrite?: boolean;
  json?: boolean;
}

export function addExport(program: Command): void {
  program
    .command('export')
    .description("turn a training checkpoint's EMA weights into a model folder that bruit and diffusers load")
    .argument('<checkpoint>', 'checkpoint-… folder of a training run')
    .requiredOption('--out <dir>', 'model folder to write')
    .option('--half', 'store the weights as f16')
    .option('--guidance <scale>', 'default guidance scale of a model trained with condition_dropout', number)
    .option('--overwrite', 'replace an existing model folder')
    .option('--json', 'the result as JSON on stdout')
    .addHelpText('after', '\nExample:\n  bruit export out/digits/checkpoint-00003000 --out models/digits --half --guidance 2')
    .action(async (checkpoint: string, options: Options) => {
      const { out } = options;
      if (existsSync(path.join(out, 'model_index.json')) && !options.overwrite) throw new BruitError('input', `${out} already holds a model; choose another --out or give --overwrite`);
      await writableFolder(out);
      const run = path.dirname(path.resolve(checkpoint));
      const recipeFile = path.join(run, 'recipe.json');
      if (!existsSync(recipeFile)) throw new BruitError('input', `${checkpoint}: there is no recipe.json beside it, so it is not a checkpoint of a training run`);
      const recipeText = await readFile(recipeFile, 'utf8');
      const recipe = JSON.parse(recipeText) as { train?: { condition_dropout?: number;  batch_size?: number; gradient_accumulation?: number; seed?: number } };
      const { step } = await readTrainerState(checkpoint);
      // Only a class-conditional model's checkpoint says what guidance there is; prompts have the empty one.
      const own = await readFile(path.join(checkpoint, 'bruit.json'), 'utf8').then((t) => JSON.parse(t) as { null_label: number }, () => undefined);
      const { _class_name: kind } = JSON.parse(await readFile(path.join(checkpoint, 'model_index.json'), 'utf8').catch(() => '{}')) as { _class_name?: string };
      const byPrompt = kind?.startsWith('StableDiffusion') === true && (recipe.train?.condition_dropout ?? 0) > 0;
      if (options.guidance !== undefined && !own && !byPrompt) throw new BruitError('input', `--guidance ${options.guidance}: only a model of labels or prompts that was trained with condition_dropout has a default guidance scale`);
      const metrics = (await readMetrics(path.join(run, 'metrics.jsonl'))).filter((m) => m.step < step);
      const adapter = await readFile(path.join(run, 'run.json'), 'utf8').then((t) => (JSON.parse(t) as { adapter?: string }).adapter, () => undefined);
      const weights = await exportCheckpoint(checkpoint, out, options.half ? 'F16' : 'F32');
      const guidance = own ? { guidance_scale: options.guidance ?? 1, null_label: own.null_label, use_clipped_model_output: true } : options.guidance !== undefined && { guidance_scale: options.guidance };
      if (guidance) await writeFileAtomic(path.join(out, 'bruit.json'), `${JSON.stringify(guidance, null, 2)}\n`, { overwrite: true });
      else await rm(path.join(out, 'bruit.json'), { force: true });
      const losses = metrics.slice(-100).map((m) => m.loss as number);
      const training = {
        steps: step,
        images_seen: step * (recipe.train?.batch_size ?? 32) * (recipe.train?.gradient_accumulation ?? 1),
        weights,
        mean_loss_of_last_100_steps: losses.reduce((a, b) => a + b, 0) / Math.max(losses.length, 1),
        seed: recipe.train?.seed ?? 0,
        ...(adapter !== undefined && { adapter }),
      };
      await writeFileAtomic(path.join(out, 'training.json'), `${JSON.stringify(training, null, 2)}\n`);
      await writeFileAtomic(path.join(out, 'recipe.json'), recipeText);
      // Every tenth step draws the same curve in a tenth of the bytes.
      await writeFileAtomic(path.join(out, 'metrics.jsonl'), metrics.filter((m) => m.step % 10 === 0).map((m) => `${JSON.stringify(m)}\n`).join(''));
      print(options.json, () => ({ out, ...training }), () => `${out}: EMA weights after ${step} steps as ${options.half ? 'F16' : 'F32'}`);
    });
}
