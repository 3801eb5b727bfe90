import { stat } from 'node:fs/promises';
import type { Command } from 'commander';
import { BruitError } from '../src/engine/errors';
import { formatTable } from '../src/engine/profiler';
import { showShape } from '../src/engine/shape';
import type { TensorInfo, TensorStore } from '../src/io/safetensors';
import { openTensorFile } from '../src/node/file_source';
import { openNamedModel } from './model';
import { estimatePipeline } from '../src/pipelines/memory';
import { positiveInteger } from './arguments';
import { print } from './engine';
import { showBytes, showInteger, showNumber } from './format';

interface Statistics {
  readonly min: number;
  readonly max: number;
  readonly mean: number;
  /** Of the population. */
  readonly std: number;
  /** How many elements are NaN or infinite; the others make the rest. */
  readonly not_finite: number;
}

interface Entry {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly elements: number;
  readonly bytes: number;
  readonly file: string;
  readonly statistics?: Statistics;
}

export function addInspect(program: Command): void {
  program
    .command('inspect')
    .description('names, shapes and statistics of the tensors in a safetensors file; GPU memory that a pipeline takes')
    .argument('<file>', 'FILE.safetensors, the .index.json of sharded weights, or a pipeline: a folder, its address, or hf:OWNER/NAME')
    .option('--filter <text>', 'only tensors whose name contains this')
    .option('--no-statistics', 'read the header alone')
    .option('--batch <n>', 'pipelines: images at once', positiveInteger)
    .option('--height <pixels>', 'pipelines: of the images', positiveInteger)
    .option('--width <pixels>', 'pipelines: of the images', positiveInteger)
    .option('--no-guidance', 'pipelines: without classifier-free guidance')
    .option('--json', 'print JSON')
    .addHelpText('after', '\nExamples:\n  bruit inspect model.safetensors\n  bruit inspect model.safetensors.index.json --filter conv_in --json\n  bruit inspect stable-diffusion/ --height 768 --width 768\n\nOf a pipeline only the configs are read: no weights are fetched.')
    .action(async (file: string, options: Options) => {
      const pipeline = /^(https?:|hf:)/.test(file) ? !/\.(safetensors|json)$/.test(file) : await isFolder(file);
      const strange = pipeline ? (options.filter !== undefined || !options.statistics) && '--filter and --no-statistics are' : (options.batch ?? options.height ?? options.width ?? (options.guidance ? undefined : 0)) !== undefined && '--batch, --height, --width and --no-guidance are';
      if (strange) throw new BruitError('input', `${strange} for ${pipeline ? 'files of tensors' : 'pipelines'}, and ${file} is ${pipeline ? 'a pipeline' : 'a file'}`);
      if (pipeline) return inspectPipeline(file, options);
      const store = await openTensorFile(file);
      try {
        const infos = [...store.tensors.values()].filter((info) => info.name.includes(options.filter ?? ''));
        const entries: Entry[] = [];
        for (const info of infos) entries.push(await entryOf(store, info, options.statistics));
        print(
          options.json,
          () => ({ file, metadata: store.metadata, tensors: entries, elements: sum(entries, 'elements'), bytes: sum(entries, 'bytes') }),
          () => report(store, entries),
        );
      } finally {
        await store.close();
      }
    });
}

interface Options {
  filter?: string;
  statistics: boolean;
  batch?: number;
  height?: number;
  width?: number;
  guidance: boolean;
  json?: boolean;
}

const isFolder = (path: string): Promise<boolean> => stat(path).then((s) => s.isDirectory(), () => false);

async function inspectPipeline(name: string, { batch = 1, height, width, guidance, json }: Options): Promise<void> {
  const memory = await estimatePipeline(openNamedModel(name), { batch, height, width, ...(!guidance && { guided: false }) });
  print(
    json,
    () => ({
      model: name,
      pipeline: memory.pipeline,
      components: memory.components.map((c) => ({ name: c.name, class: c.className, parameters: c.parameters, weight_bytes: c.weightBytes, activation_bytes: c.activationBytes, largest_tensor_bytes: c.largestBytes })),
      peak_bytes: memory.peakBytes,
      peak_of: memory.peakOf,
      kept_bytes: memory.keptBytes,
    }),
    () =>
      [
        `${name}: ${memory.pipeline}, ${batch === 1 ? 'one image' : `${batch} images`} at once${height === undefined ? '' : `, ${height}x${width}`}`,
        '',
        formatTable([['component', 'class', 'parameters', 'weights', 'activations', 'largest tensor'], ...memory.components.map((c) => [c.name, c.className, showInteger(c.parameters), showBytes(c.weightBytes), showBytes(c.activationBytes), showBytes(c.largestBytes)])], 2),
        '',
        `peak ${showBytes(memory.peakBytes)} (${memory.peakOf.join(' with ')}): components are loaded and freed in turn; ${showBytes(memory.keptBytes)} with all weights kept`,
      ].join('\n'),
  );
}

const sum = (entries: readonly Entry[], key: 'elements' | 'bytes'): number => entries.reduce((n, e) => n + e[key], 0);

async function entryOf(store: TensorStore, { name, dtype, shape, byteLength, file }: TensorInfo, wanted: boolean): Promise<Entry> {
  const elements = shape.reduce((a, b) => a * b, 1);
  const entry = { name, dtype, shape, elements, bytes: byteLength, file };
  return wanted && elements > 0 ? { ...entry, statistics: statisticsOf(await store.readF32(name)) } : entry;
}

/** Two passes in float64: the mean first, so that the variance does not cancel. */
export function statisticsOf(values: Float32Array): Statistics {
  let [min, max, sum, count] = [Infinity, -Infinity, 0, 0];
  for (const v of values) {
    if (!Number.isFinite(v)) continue;
    if (v < min) min = v;
    if (v > max) max = v;
    sum += v;
    count++;
  }
  const mean = sum / count;
  let squares = 0;
  for (const v of values) if (Number.isFinite(v)) squares += (v - mean) ** 2;
  const none = count === 0;
  return { min: none ? NaN : min, max: none ? NaN : max, mean, std: Math.sqrt(squares / count), not_finite: values.length - count };
}

function report(store: TensorStore, entries: readonly Entry[]): string {
  const statistics = entries.some((e) => e.statistics);
  const table = [
    ['name', 'dtype', 'shape', 'bytes', ...(statistics ? ['min', 'max', 'mean', 'std', 'NaN/inf'] : [])],
    ...entries.map((e) => [
      e.name,
      e.dtype,
      showShape(e.shape),
      showBytes(e.bytes),
      ...(!statistics ? [] : e.statistics ? [...(['min', 'max', 'mean', 'std'] as const).map((k) => showNumber(e.statistics![k])), e.statistics.not_finite ? showInteger(e.statistics.not_finite) : ''] : ['', '', '', '', '']),
    ]),
  ];
  const byType = new Map<string, number>();
  for (const e of entries) byType.set(e.dtype, (byType.get(e.dtype) ?? 0) + e.elements);
  const lines = [formatTable(table, 3), ''];
  for (const [key, value] of Object.entries(store.metadata)) lines.push(`metadata ${key}: ${value}`);
  lines.push(`${entries.length} tensors, ${showInteger(sum(entries, 'elements'))} elements (${[...byType].map(([dtype, n]) => `${showInteger(n)} ${dtype}`).join(', ') || 'none'}), ${showBytes(sum(entries, 'bytes'))}`);
  return lines.join('\n');
}
