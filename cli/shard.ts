/** `--shard 3/16`: which images of a job a worker makes, and where it puts them. */
import { InvalidArgumentError } from 'commander';
import { BruitError } from '../src/engine/errors';

export interface Shard {
  /** From 0, as Kubernetes and Slurm count. */
  readonly index: number;
  readonly count: number;
}

/** Parses `INDEX/COUNT`. */
export function shard(text: string): Shard {
  const match = /^(\d+)\/(\d+)$/.exec(text);
  const [index, count] = [Number(match?.[1]), Number(match?.[2])];
  if (!match || !Number.isSafeInteger(count) || count < 1) throw new InvalidArgumentError('It must be INDEX/COUNT, such as 3/16.');
  if (index >= count) throw new InvalidArgumentError(`Shards count from 0: the last of ${count} is ${count - 1}/${count}.`);
  return { index, count };
}

/** The images of a shard among `total`: [first, end). Shards differ by at most one image; some are empty if there are more shards than images. */
export function shardRange({ index, count }: Shard, total: number): readonly [number, number] {
  return [Math.floor((index * total) / count), Math.floor(((index + 1) * total) / count)];
}

/**
 * Where a shard writes: a folder is shared, since images are named by their number; `x.safetensors` becomes `x-00003-of-00016.safetensors`.
 * @throws BruitError `input` for a grid, which cannot be put together from parts.
 */
export function shardPath(out: string, { index, count }: Shard): string {
  if (out.endsWith('.png')) throw new BruitError('input', `--shard: ${out} is one grid, which several workers cannot share; give a folder or a .safetensors file as --out`);
  const digits = (n: number) => String(n).padStart(5, '0');
  return out.replace(/\.safetensors$/, `-${digits(index)}-of-${digits(count)}.safetensors`);
}
