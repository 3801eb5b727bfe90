import path from 'node:path';
import type { Command } from 'commander';
import { directory } from '../src/node/directory';
import { packageRoot } from '../src/node/cache';
import { formatDuration, Progress } from '../src/node/progress';
import { runTraining } from '../src/node/train_run';
import { DDPMPipeline } from '../src/pipelines/ddpm';
import { openEngine } from './engine';
import { bundledModel, generateWithProgress, writeImages } from './sample';

export function addDemo(program: Command): void {
  program
    .command('demo')
    .description('sample a grid of digits from the bundled model, then train a small U-Net on MNIST for a short run')
    .option('--out <dir>', 'folder for the results', 'out')
    .addHelpText('after', '\nWrites digits.png, and train/ with metrics.jsonl, loss.png and a checkpoint. Existing results are replaced.')
    .action(async ({ out }: { out: string }) => {
      const started = performance.now();
      const engine = await openEngine();
      try {
        console.log(`adapter: ${engine.profile.name}`);
        const grid = path.join(out, 'digits.png');
        const pipeline = await DDPMPipeline.fromFolder(engine, directory(bundledModel()));
        try {
          const result = await generateWithProgress(pipeline, { count: 30, labels: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], steps: 20, seed: 0, batchSize: 30 }, false);
          await writeImages(grid, result, { model: 'digits', steps: 20, seed: 0, adapter: engine.profile.name }, true);
        } finally {
          pipeline.destroy();
        }
        console.log(`30 digits in ${grid}`);

        let progress: Progress | undefined;
        const result = await runTraining(engine, {
          recipe: path.join(packageRoot(), 'recipes', 'demo.json'),
          out: path.join(out, 'train'),
          overwrite: true,
          onStart: (_, total) => (progress = new Progress({ total, label: 'train', unit: 'step' })),
          onMetrics: (metrics) => progress?.update(metrics[metrics.length - 1]!.step + 1, { loss: metrics[metrics.length - 1]!.loss }),
        });
        progress?.finish();
        console.log(`trained ${result.steps} steps on real MNIST digits; loss curve in ${result.lossCurve}`);
        console.log(`done in ${formatDuration((performance.now() - started) / 1000)}`);
      } finally {
        engine.destroy();
      }
    });
}
