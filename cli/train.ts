import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Option, type Command } from 'commander';
import type { Engine } from '../src/engine/device';
import { BruitError } from '../src/engine/errors';
import { describeNonFinite } from '../src/engine/nan_probe';
import { withEngine } from '../src/engine/recover';
import { writableFolder } from '../src/node/files';
import { Progress } from '../src/node/progress';
import { listCheckpoints } from '../src/node/run_directory';
import { runTraining } from '../src/node/train_run';
import { loadTuning, saveTuning } from '../src/node/tuning_store';
import { openEngine, print } from './engine';
import { positiveInteger } from './arguments';

interface Options {
  out: string;
  resume?: boolean;
  overwrite?: boolean;
  stopAfter?: number;
  recover?: boolean;
  debugNan?: 'stop' | 'skip';
  json?: boolean;
}

export function addTrain(program: Command): void {
  program
    .command('train')
    .description('train a model from a recipe; the whole step runs on the GPU')
    .argument('<recipe>', 'JSON file with "model", "scheduler", "data" and "train"')
    .requiredOption('--out <dir>', 'folder for checkpoints, metrics.jsonl and the loss curve')
    .option('--resume', 'go on from the newest checkpoint in --out')
    .option('--overwrite', 'start over in a folder that already holds a run')
    .option('--stop-after <steps>', 'end at this step; the learning-rate schedule stays that of the recipe', positiveInteger)
    .option('--recover', 'when the device is lost, go on from the last checkpoint on a new one')
    .addOption(new Option('--debug-nan <what>', 'name the first layer that makes a NaN, and stop there or skip the step (slower)').choices(['stop', 'skip']))
    .option('--json', 'progress as JSON lines on stderr, the result as JSON on stdout')
    .addHelpText('after', '\nExamples:\n  bruit train recipes/digits.json --out out/digits\n  bruit train recipes/digits.json --out out/digits --resume\n\nInterrupting (Ctrl-C) saves a checkpoint first; press it twice to stop at once.')
    .action(async (recipe: string, options: Options) => {
      if (options.resume && options.overwrite) throw new BruitError('input', '--resume goes on with a run and --overwrite starts it over: give one of them');
      await writableFolder(options.out);
      const abort = new AbortController();
      const interrupt = () => {
        if (abort.signal.aborted) process.exit(130);
        process.stderr.write('\ninterrupted: saving a checkpoint\n');
        abort.abort();
      };
      process.on('SIGINT', interrupt);
      process.on('SIGTERM', interrupt);
      let progress: Progress | undefined;
      let encoding: Progress | undefined;
      try {
        const onLost = (error: Error) => void process.stderr.write(`\n${error.message.split(')')[0]}): beginning anew on another device\n`);
        const result = await withEngine({ recover: options.recover ?? false, onLost, create: () => openEngine() }, async (engine, attempt) => {
          const started = attempt > 0 ? { resume: (await listCheckpoints(options.out)).length > 0, overwrite: true } : { resume: options.resume ?? false, overwrite: options.overwrite ?? false };
          await useTuning(engine, { ...options, ...started });
          return runTraining(engine, {
            recipe,
            out: options.out,
            ...started,
            ...(options.stopAfter !== undefined && { stopAfter: options.stopAfter }),
            signal: abort.signal,
            debugNan: options.debugNan,
            onNonFinite: (found, step) => void process.stderr.write(`\nstep ${step} was skipped: ${describeNonFinite(found)}\n`),
            onEncode: (done, total) => {
              encoding ??= new Progress({ total, label: 'encode', unit: 'image', json: options.json ?? false });
              encoding.update(done);
              if (done === total) encoding.finish();
            },
            onStart: (trainer, total, peakBytes) => {
              const mebibytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
              const { plan, weights, frozen } = trainer.step;
              process.stderr.write(`${weights.count} weights${frozen.count ? ` (and ${frozen.count} that stay as they are)` : ''} on ${engine.profile.name}; activations ${mebibytes(plan.plannedBytes)} planned, ${mebibytes(plan.naiveBytes)} without reuse; at most ${mebibytes(peakBytes)} of GPU memory in all\n`);
              progress = new Progress({ total, label: 'train', unit: 'step', start: trainer.stepsDone, json: options.json ?? false });
            },
            onMetrics: (metrics) => {
              const last = metrics[metrics.length - 1]!;
              progress?.update(last.step + 1, { loss: metrics.reduce((s, m) => s + m.loss, 0) / metrics.length, lr: last.learningRate });
            },
          });
        });
        progress?.finish();
        print(options.json, () => result, () => `${result.steps} steps, mean loss ${result.loss.toFixed(5)}\ncheckpoint  ${result.checkpoint ?? 'none'}\nloss curve  ${result.lossCurve}`);
      } finally {
        process.off('SIGINT', interrupt);
        process.off('SIGTERM', interrupt);
      }
    });
}

/**
 * A run keeps the tuning that it began with, in tuning.json of its folder: other kernels add in another order, and a resumed run would not be the
 * one that was interrupted.
 */
async function useTuning(engine: Engine, { out, resume, overwrite }: Options): Promise<void> {
  const file = join(out, 'tuning.json');
  if (resume) await loadTuning(engine, file);
  else if (await loadTuning(engine)) {
    if (overwrite || !existsSync(out)) await saveTuning(engine, file);
  } else if (overwrite) await rm(file, { force: true });
}
