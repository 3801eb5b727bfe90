/** What a verification found: recomputed tensors beside the recorded ones. */
import { BruitError } from '../engine/errors';
import { formatTable } from '../engine/profiler';
import { numel, showShape, type Shape } from '../engine/shape';
import type { ModelFolder } from '../io/folder';
import type { SafetensorsDtype, TensorStore } from '../io/safetensors';

/** The folder of a reference case, wherever it lies. */
export interface CaseFolder {
  /** Path or address, for messages. */
  readonly name: string;
  /** Paths of all files relative to it, with `/`. */
  readonly files: readonly string[];
  json(path: string): Promise<unknown>;
  /** A safetensors file or a sharded index; the folder closes it. */
  tensors(path: string): Promise<TensorStore>;
  /** The same folder as components of models are loaded from. */
  readonly model: ModelFolder;
}

/** One tensor against its record: `a` is bruit's, `b` the recorded one. */
export interface Comparison {
  readonly file: string;
  readonly name: string;
  readonly shape: Shape;
  /** max |a−b|; NaN if a holds one. */
  readonly difference: number;
  /** max |b|. */
  readonly largest: number;
  /** Largest difference that counts as agreement. */
  readonly allowed: number;
  readonly ok: boolean;
  /** Where samples are compared one by one: the one that fits worst, which the numbers above are of. */
  readonly sample?: number;
}

export interface Recomputed {
  readonly file: string;
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: Shape;
  readonly data: Float32Array | Float64Array | Int32Array;
  /** Where it stands in a JSON file. */
  readonly path?: readonly (string | number)[];
}

export type Numbers = Float32Array | Float64Array | Int32Array | readonly number[];

/** Tolerances of the reference data, as multiples of a tensor's largest value where not said otherwise. */
export const tolerances = {
  /** One call of a model. */
  model: 1e-4,
  /** Of the largest gradient of all. */
  gradient: 1e-4,
  loss: 1e-5,
  trajectory: 1e-5,
  /** What many steps of a pipeline led to. */
  pipeline: 5e-4,
  /** Of learning rate times steps. */
  parameter: 0.1,
  /** Of learning rate times steps, where a gradient is zero but for rounding, which Adam turns into whole steps. */
  undetermined: 2,
} as const;

const maxAbs = (x: ArrayLike<number>): number => {
  let largest = 0;
  for (let i = 0; i < x.length; i++) largest = Math.max(largest, Math.abs(x[i]!)); // NaN stays NaN
  return largest;
};

const maxDifference = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let worst = 0;
  for (let i = 0; i < b.length; i++) worst = Math.max(worst, Math.abs(a[i]! - b[i]!));
  return worst;
};

/** Collects the comparisons of a case in the order in which the tensors were computed. */
export class CaseReport {
  readonly comparisons: Comparison[] = [];
  readonly recomputed: Recomputed[] = [];
  readonly notRecomputed: { readonly file: string; readonly name: string; readonly reason: string }[] = [];
  /** What was verified, for the heading. */
  readonly kinds: string[] = [];

  get ok(): boolean {
    return this.comparisons.every((c) => c.ok);
  }

  /** The first tensor, in order of execution, that does not agree. */
  get firstDivergence(): Comparison | undefined {
    return this.comparisons.find((c) => !c.ok);
  }

  skip(file: string, name: string, reason: string): void {
    this.notRecomputed.push({ file, name, reason });
  }

  /**
   * Records `actual` for tensor `name` of `store`. It agrees if max |a−b| is at most `allowed`, given max |b|. A second way to the same
   * tensor, `with` other files, is compared but not written.
   */
  async compare(store: TensorStore, file: string, name: string, actual: Numbers, allowed: (largest: number) => number, again: { readonly with?: string } = {}): Promise<void> {
    const { shape, data, expected } = await this.record(store, file, name, actual, again.with === undefined);
    const [difference, largest] = [maxDifference(data, expected), maxAbs(expected)];
    const limit = allowed(largest);
    this.comparisons.push({ file, name: again.with === undefined ? name : `${name} (${again.with})`, shape, difference, largest, allowed: limit, ok: difference <= limit });
  }

  /** The same for numbers of a JSON file, computed on the host. A NaN, or another count, agrees with nothing. */
  compareNumbers(actual: Omit<Recomputed, 'dtype'> & { readonly data: Float64Array | Int32Array }, expected: readonly number[], allowed: (largest: number) => number): void {
    const { file, name, shape, data } = actual;
    const [difference, largest] = [data.length === expected.length ? maxDifference(data, expected) : Infinity, maxAbs(expected)];
    const limit = allowed(largest);
    this.comparisons.push({ file, name, shape, difference, largest, allowed: limit, ok: difference <= limit });
    this.recomputed.push({ ...actual, dtype: data instanceof Int32Array ? 'I32' : 'F64' });
  }

  /** The same sample by sample along the first axis, each against its own largest value; the sample that fits worst is reported. */
  async compareSamples(store: TensorStore, file: string, name: string, actual: Numbers, relative: (sample: number) => number): Promise<void> {
    const { shape, data, expected } = await this.record(store, file, name, actual);
    const size = expected.length / shape[0]!;
    const samples = Array.from({ length: shape[0]! }, (_, n): Comparison => {
      const b = expected.subarray(n * size, (n + 1) * size);
      const [difference, largest] = [maxDifference(data.subarray(n * size, (n + 1) * size), b), maxAbs(b)];
      const limit = largest * relative(n);
      return { file, name, shape, difference, largest, allowed: limit, ok: difference <= limit, sample: n };
    });
    this.comparisons.push(samples.reduce((worst, s) => (worst.ok && (!s.ok || s.difference * worst.allowed > worst.difference * s.allowed) ? s : worst)));
  }

  private async record(store: TensorStore, file: string, name: string, actual: Numbers, written = true): Promise<{ shape: Shape; data: Recomputed['data']; expected: Float32Array }> {
    const { shape, dtype } = store.tensors.get(name)!;
    if (actual.length !== numel(shape)) throw new BruitError('shape', `${file}: ${name} is recorded as ${showShape(shape)}, but ${actual.length} numbers were computed: the case's files do not belong together`);
    const stored = dtype === 'I32' || dtype === 'I64' ? ('I32' as const) : dtype === 'F64' ? ('F64' as const) : ('F32' as const);
    const data = stored === 'I32' ? Int32Array.from(actual) : stored === 'F64' ? Float64Array.from(actual) : Float32Array.from(actual);
    if (written) this.recomputed.push({ file, name, dtype: stored, shape, data });
    // Compared as it is stored: rounded as the record was.
    return { shape, data, expected: await store.readF32(name) };
  }
}

/** The table that `bruit verify` prints. */
export function reportTable(report: CaseReport): string {
  const several = new Set(report.comparisons.map((c) => c.file)).size > 1;
  const rows = report.comparisons.map((c) => [
    `${several ? `${c.file}: ` : ''}${c.name}${c.sample === undefined ? '' : ` (sample ${c.sample})`}`,
    showShape(c.shape),
    showError(c.difference),
    c.largest > 0 ? showError(c.difference / c.largest) : c.difference === 0 ? '0' : '-',
    showError(c.allowed),
    c.ok ? 'ok' : 'MISS',
  ]);
  return formatTable([['name', 'shape', 'max|a-b|', 'max|a-b|/max|b|', 'allowed', 'verdict'], ...rows], 2);
}

export const showError = (x: number): string => (x === 0 ? '0' : x.toExponential(2));
