import { existsSync } from 'node:fs';
import { mkdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import type { Command } from 'commander';
import { BruitError } from '../src/engine/errors';
import { writeFileAtomic } from '../src/node/files';
import { readMetrics } from '../src/node/plot';
import { loadCheckpoint, writeModelFolder } from '../src/node/run_directory';
import { parseTrainConfig } from '../src/train/config';
import { number } from './arguments';
import { print } from './engine';

interface Options {
  out: string;
  half?: boolean;
  guidance: number;
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
    .option('--guidance <scale>', 'default guidance scale of a model trained with condition_dropout', number, 1)
    .option('--overwrite', 'replace an existing model folder')
    .option('--json', 'the result as JSON on stdout')
    .addHelpText('after', '\nExample:\n  bruit export out/digits/checkpoint-00003000 --out models/digits --half --guidance 2')
    .action(async (checkpoint: string, options: Options) => {
      const { out } = options;
      if (existsSync(path.join(out, 'model_index.json')) && !options.overwrite) throw new BruitError('input', `${out} already holds a model; choose another --out or give --overwrite`);
      const run = path.dirname(path.resolve(checkpoint));
      const recipeFile = path.join(run, 'recipe.json');
      if (!existsSync(recipeFile)) throw new BruitError('input', `${checkpoint}: there is no recipe.json beside it, so it is not a checkpoint of a training run`);
      const recipeText = await readFile(recipeFile, 'utf8');
      const config = parseTrainConfig(JSON.parse(recipeText), recipeFile);
      const { state, tensors } = await loadCheckpoint(checkpoint);
      const metrics = (await readMetrics(path.join(run, 'metrics.jsonl'))).filter((m) => m.step < state.step);
      const adapter = await readFile(path.join(run, 'run.json'), 'utf8').then((t) => (JSON.parse(t) as { adapter?: string }).adapter, () => undefined);

      await mkdir(path.join(out, 'scheduler'), { recursive: true });
      await writeModelFolder(path.join(out, 'unet'), config.modelJson, tensors.ema, options.half ? 'F16' : 'F32');
      for (const file of ['model_index.json', 'scheduler/scheduler_config.json']) await writeFileAtomic(path.join(out, file), await readFile(path.join(checkpoint, file)));
      if (config.conditionDropout > 0) {
        await writeFileAtomic(path.join(out, 'bruit.json'), `${JSON.stringify({ guidance_scale: options.guidance, null_label: config.model.num_class_embeds! - 1, use_clipped_model_output: true }, null, 2)}\n`);
      }
      const losses = metrics.slice(-100).map((m) => m.loss as number);
      const training = {
        steps: state.step,
        images_seen: state.step * config.batchSize * config.accumulation,
        weights: tensors.ema.reduce((n, t) => n + t.data.length, 0),
        mean_loss_of_last_100_steps: losses.reduce((a, b) => a + b, 0) / Math.max(losses.length, 1),
        seed: config.seed,
        ...(adapter !== undefined && { adapter }),
      };
      await writeFileAtomic(path.join(out, 'training.json'), `${JSON.stringify(training, null, 2)}\n`);
      await writeFileAtomic(path.join(out, 'recipe.json'), recipeText);
      // Every tenth step draws the same curve in a tenth of the bytes.
      await writeFileAtomic(path.join(out, 'metrics.jsonl'), metrics.filter((m) => m.step % 10 === 0).map((m) => `${JSON.stringify(m)}\n`).join(''));
      print(options.json, () => ({ out, ...training }), () => `${out}: EMA weights after ${state.step} steps as ${options.half ? 'F16' : 'F32'}`);
    });
}
