import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** A tensor of a golden file: shape, the file's element type, and the values widened to f64 (BOOL: 0 and 1). */
export interface GoldenTensor {
  shape: number[];
  dtype: string;
  data: Float64Array;
}

/** Path of a file under tests/goldens. */
export const goldenPath = (...parts: string[]): string => join(fileURLToPath(new URL('../goldens', import.meta.url)), ...parts);

/** Parses a JSON file under tests/goldens. */
export const goldenJson = <T>(...parts: string[]): T => JSON.parse(readFileSync(goldenPath(...parts), 'utf8')) as T;

const halfToNumber = (bits: number): number => {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25));
};

const READERS: Record<string, readonly [bytes: number, read: (view: DataView, at: number) => number]> = {
  F64: [8, (v, at) => v.getFloat64(at, true)],
  F32: [4, (v, at) => v.getFloat32(at, true)],
  F16: [2, (v, at) => halfToNumber(v.getUint16(at, true))],
  BF16: [
    2,
    (v, at) => {
      const wide = new DataView(new ArrayBuffer(4));
      wide.setUint16(2, v.getUint16(at, true), true);
      return wide.getFloat32(0, true);
    },
  ],
  I64: [8, (v, at) => Number(v.getBigInt64(at, true))],
  I32: [4, (v, at) => v.getInt32(at, true)],
  U8: [1, (v, at) => v.getUint8(at)],
  BOOL: [1, (v, at) => v.getUint8(at)],
};

/** Reads every tensor of tests/goldens/`dir`/`file`, independently of the library's own safetensors reader. */
export function loadGolden(dir: string, file: string): Map<string, GoldenTensor> {
  const bytes = readFileSync(goldenPath(dir, file));
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const headerLength = Number(view.getBigUint64(0, true));
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + headerLength)) as Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;
  const tensors = new Map<string, GoldenTensor>();
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const reader = READERS[dtype];
    if (!reader) throw new Error(`${dir}/${file}: ${name} has dtype ${dtype}, which tests/helpers/golden.ts does not read`);
    const [size, read] = reader;
    const data = Float64Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => read(view, 8 + headerLength + data_offsets[0] + i * size));
    tensors.set(name, { shape, dtype, data });
  }
  return tensors;
}
