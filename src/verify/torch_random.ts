/** Draws of torch's CPU generator: `randn.SEED.SHAPE`, and `sequence.SEED.N`, the Nth of randn, randn, rand and randint(0, 1000) from one generator. */
import { TorchCpuGenerator } from '../engine/torch_rng';
import type { TensorStore } from '../io/safetensors';
import type { CaseReport } from './report';

const namePattern = /^(randn|sequence)\.(\d+)\.([\dx]+)$/;

export const isTorchRandomRecord = (io: TensorStore): boolean => io.tensors.size > 0 && [...io.tensors.keys()].every((name) => namePattern.test(name));

export async function verifyTorchRandom(report: CaseReport, io: TensorStore, file: string): Promise<void> {
  report.kinds.push("draws of torch's CPU generator");
  const sequences = new Map<number, TorchCpuGenerator>();
  for (const [name, { shape }] of [...io.tensors].sort(([a], [b]) => a.localeCompare(b, 'en', { numeric: true }))) {
    const [, kind, seed, rest] = namePattern.exec(name)!;
    const generator = kind === 'randn' ? new TorchCpuGenerator(Number(seed)) : (sequences.get(Number(seed)) ?? new TorchCpuGenerator(Number(seed)));
    if (kind === 'sequence') sequences.set(Number(seed), generator);
    const draw = kind === 'randn' || Number(rest) < 2 ? generator.randn(shape) : rest === '2' ? generator.rand(shape) : generator.randint(0, 1000, shape);
    // Normal draws go through functions that libraries round differently.
    const exact = kind === 'sequence' && Number(rest) >= 2;
    await report.compare(io, file, name, draw, (largest) => (exact ? 0 : 1e-6 * largest));
  }
}
