/** Which format each weight of a model is stored in. */
import type { PackedFormat } from '../engine/buffer_view';
import { numel } from '../engine/shape';
import { isQuantised, packedBytes } from '../io/packed';
import type { SafetensorsDtype } from '../io/safetensors';
import type { ParameterSpec } from './parameters';

/** How a weight lies in GPU memory: `f32`, or packed in a format of src/io/packed.ts. */
export type WeightFormat = 'f32' | PackedFormat;

/** What is wanted of all weights: one format, or `auto` for what the checkpoint itself has (F16 as f16, BF16 as bf16, all else as f32). */
export type WeightStorage = 'auto' | WeightFormat;
export const weightStorages = ['auto', 'f32', 'f16', 'bf16', 'int8', 'int4'] as const satisfies readonly WeightStorage[];

/**
 * The format of one weight. What no product or table reads stays f32, and so does a weight whose channels do not divide by 4 where int8 or int4 is
 * wanted (or it stays what the checkpoint has).
 * @param inFile Type in the checkpoint, if it comes from one.
 */
export function weightFormat({ shape, layout }: Pick<ParameterSpec, 'shape' | 'layout'>, wanted: WeightStorage, inFile?: SafetensorsDtype): WeightFormat {
  if (layout === 'plain') return 'f32';
  const divisible = (layout === 'table' ? shape.slice(1) : shape.slice(0, 2)).every((d) => d % 4 === 0);
  if (wanted !== 'auto' && (divisible || wanted === 'f32' || !isQuantised(wanted))) return wanted;
  return inFile === 'F16' ? 'f16' : inFile === 'BF16' ? 'bf16' : 'f32';
}

/** Bytes of a weight in GPU memory, padding excluded. */
export const weightBytes = ({ shape, layout }: Pick<ParameterSpec, 'shape' | 'layout'>, format: WeightFormat): number =>
  format === 'f32' ? 4 * numel(shape) : packedBytes(format, numel(shape), layout === 'table' ? 1 : shape[0]!);
