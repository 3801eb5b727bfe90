import path from 'node:path';
import type { Command } from 'commander';
import type { Engine } from '../src/engine/device';
import { encodePng, imageGrid } from '../src/io/png';
import { directory } from '../src/node/directory';
import { writeFileAtomic } from '../src/node/files';
import { packageRoot } from '../src/node/cache';
import { formatDuration, Progress } from '../src/node/progress';
import { runTraining } from '../src/node/train_run';
import { DDPMPipeline } from '../src/pipelines/ddpm';
import { StableDiffusionPipeline } from '../src/pipelines/stable_diffusion';
import { openEngine } from './engine';
import { bundledModel, generateWithProgress, writeImages } from './sample';

/** One row of pictures each. */
const prompts = ['a handwritten seven', 'two threes side by side', 'a thick slanted four', 'a thin one and a thin eight'];
const columns = 5;

/** Text to image: prompts to the text encoder, latents by the U-Net, pixels by the autoencoder's decoder. */
async function drawScenes(engine: Engine, file: string): Promise<void> {
  const pipeline = await StableDiffusionPipeline.fromFolder(engine, directory(bundledModel('scenes')));
  try {
    const prompt = prompts.flatMap((text) => Array<string>(columns).fill(text));
    const steps = 25;
    const progress = new Progress({ total: steps, label: 'sample', unit: 'step' });
    const { data, shape } = await pipeline.generate({ prompt, num_inference_steps: steps, guidance_scale: 2, seed: 0, onProgress: (done) => progress.update(done) });
    progress.finish();
    const made = { model: 'scenes', prompts, steps, guidance_scale: 2, seed: 0, adapter: engine.profile.name };
    await writeFileAtomic(file, encodePng(imageGrid({ data, shape: [shape[0]!, shape[1]!, shape[2]!, shape[3]!] }, { columns }), { Software: 'bruit', parameters: JSON.stringify(made) }), { overwrite: true });
  } finally {
    pipeline.destroy();
  }
}

export function addDemo(program: Command): void {
  program
    .command('demo')
    .description('sample a grid of digits and answer prompts with the bundled models, then train a small U-Net on MNIST for a short run')
    .option('--out <dir>', 'folder for the results', 'out')
    .addHelpText('after', '\nWrites digits.png, scenes.png, and train/ with metrics.jsonl, loss.png and a checkpoint. Existing results are replaced.')
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
        const scenes = path.join(out, 'scenes.png');
        await drawScenes(engine, scenes);
        console.log(`"${prompts.join('", "')}", ${columns} of each, in ${scenes}`);

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
