import type { Command } from 'commander';
import { formatTable } from '../src/engine/profiler';
import { showShape } from '../src/engine/shape';
import type { TensorInfo, TensorStore } from '../src/io/safetensors';
import { openTensorFile } from '../src/node/file_source';
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
    .description('names, shapes and statistics of the tensors in a safetensors file')
    .argument('<file>', 'FILE.safetensors, or the .index.json of sharded weights')
    .option('--filter <text>', 'only tensors whose name contains this')
    .option('--no-statistics', 'read the header alone')
    .option('--json', 'print JSON')
    .addHelpText('after', '\nExamples:\n  bruit inspect model.safetensors\n  bruit inspect model.safetensors.index.json --filter conv_in --json')
    .action(async (file: string, options: { filter?: string; statistics: boolean; json?: boolean }) => {
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
