import type { Command } from 'commander';
import { gradients } from '../src/engine/autodiff';
import { BruitError } from '../src/engine/errors';
import { Graph } from '../src/engine/graph';
import { square } from '../src/engine/ops/pointwise';
import { sum } from '../src/engine/ops/sum';
import { formatTable } from '../src/engine/profiler';
import { tune, type TunedOp } from '../src/engine/tune';
import { readJson } from '../src/io/folder';
import { Parameters } from '../src/model/parameters';
import { parseUNet2DConfig, unet2d, unet2dInputs } from '../src/model/unet2d';
import { directory } from '../src/node/directory';
import { Progress } from '../src/node/progress';
import { saveTuning, tuningFile } from '../src/node/tuning_store';
import { positiveInteger } from './arguments';
import { openEngine, print } from './engine';

interface Options {
  batch: number;
  train?: boolean;
  mixedPrecision?: boolean;
  json?: boolean;
}

export function addTune(program: Command): void {
  program
    .command('tune')
    .description("time the kernels' variants at a model's shapes on this adapter, and use the fastest from now on")
    .argument('<model>', 'folder of a UNet2DModel (config.json), or of a pipeline that holds one in unet/')
    .option('--batch <n>', 'images at once, as you will sample or train', positiveInteger, 1)
    .option('--train', 'the kernels of training too')
    .option('--mixed-precision', 'with activations in f16, as a recipe with mixed_precision trains')
    .option('--json', 'print JSON')
    .addHelpText('after', '\nExamples:\n  bruit tune models/digits --batch 32\n  bruit tune models/digits --batch 32 --train --adapter gpu')
    .action(async (model: string, options: Options) => {
      const graph = await graphOf(model, options);
      const engine = await openEngine({ tuned: true });
      if (options.mixedPrecision && !engine.profile.f16) {
        engine.destroy();
        throw new BruitError('device', `mixed precision needs the device feature shader-f16, which this one (${engine.profile.name}) lacks`);
      }
      try {
        let progress: Progress | undefined;
        const tuned = await tune(engine, graph, {
          onProgress: (done, total, { op }) => {
            progress ??= new Progress({ total, label: 'tune', unit: 'kernel', json: options.json ?? false });
            progress.update(done, { op });
          },
        }).finally(() => saveTuning(engine));
        progress?.finish();
        const file = tuningFile(engine.profile.name);
        print(options.json, () => ({ adapter: engine.profile.name, file, tuned }), () => toText(engine.profile.name, file, tuned));
      } finally {
        engine.destroy();
      }
    });
}

/** The model's graph, with gradients of all weights if it is to be trained. */
async function graphOf(path: string, { batch, train, mixedPrecision }: Options): Promise<Graph> {
  const folder = directory(path);
  const file = (await folder.has('config.json')) ? 'config.json' : 'unet/config.json';
  const config = parseUNet2DConfig(await readJson(folder, file), `${path}/${file}`);
  const size = config.sample_size;
  if (!size) throw new BruitError('config', `${path}/${file} has no sample_size, so there are no shapes to tune for`);
  const [height, width] = size;
  const graph = new Graph();
  const parameters = new Parameters(graph);
  const ctx = { graph, parameters, ...(mixedPrecision && { computeType: 'f16' as const }) };
  const y = unet2d(ctx, config, unet2dInputs(ctx, config, [batch, height, width]));
  if (train) gradients(sum(square(y)), [...parameters.tensors.values()]);
  return graph;
}

function toText(adapter: string, file: string, tuned: readonly TunedOp[]): string {
  const rows = tuned.map(({ key, milliseconds, winner, wrong, failed }) => [
    key.replace(/ \{.*$/, ''),
    winner,
    ...[milliseconds.default ?? NaN, milliseconds[winner] ?? NaN].map((ms) => ms.toFixed(3)),
    Object.entries(milliseconds).map(([name, ms]) => `${name} ${ms.toFixed(3)}`).join(', ') + (wrong.length ? `; wrong: ${wrong.join(', ')}` : '') + (failed.length ? `; refused: ${failed.join(', ')}` : ''),
  ]);
  const changed = tuned.filter((t) => t.winner !== 'default').length;
  return [adapter, '', formatTable([['op and shapes', 'winner', 'default ms', 'winner ms', 'all'], ...rows], 2), '', `${changed} of ${tuned.length} differ from the default; kept in ${file}`].join('\n');
}
