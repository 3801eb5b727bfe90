/// <reference types="vite/client" />
import type { Command } from 'commander';
import { benchmarkKernels, type KernelTiming } from '../src/engine/benchmark';
import { BruitError } from '../src/engine/errors';
import type { OpTests } from '../src/engine/op';
import { measurePeak, type Peak } from '../src/engine/peak';
import { formatTable } from '../src/engine/profiler';
import { Progress } from '../src/node/progress';
import { openEngine, print } from './engine';

// Every op with tests: a new one is benchmarked by being there.
const modules = import.meta.glob<{ tests?: OpTests<never> | OpTests<never>[] }>('../src/engine/ops/*.ts', { eager: true });
const suites = Object.values(modules).flatMap((m) => m.tests ?? []);

export function addBench(program: Command): void {
  program
    .command('bench')
    .description('time every kernel at the shapes of real layers')
    .argument('[op]', 'only ops whose name contains this')
    .option('--variants', 'also time each kernel variant by itself')
    .option('--runs <n>', 'timed repetitions of each kernel', (text) => {
      const n = Number(text);
      if (!Number.isInteger(n) || n < 1) throw new BruitError('input', `--runs ${text}: must be a whole number of at least 1`);
      return n;
    }, 5)
    .option('--json', 'print JSON')
    .addHelpText('after', '\nExamples:\n  bruit bench\n  bruit bench conv2d --variants\n  bruit bench --adapter software --json > kernels.json')
    .action(async (op: string | undefined, options: { variants?: boolean; runs: number; json?: boolean }) => {
      const chosen = suites.filter((s) => s.op.name.includes(op ?? ''));
      const total = chosen.reduce((n, s) => n + s.cases.filter((c) => c.bench).length, 0);
      if (total === 0) throw new BruitError('input', `no op with benchmark shapes is named like "${op}"; there are ${suites.filter((s) => s.cases.some((c) => c.bench)).map((s) => s.op.name).join(', ')}`);
      const engine = await openEngine();
      const peak = await measurePeak(engine);
      const progress = new Progress({ total, label: 'bench', unit: 'case' });
      const timings: KernelTiming[] = [];
      const seen = new Set<string>();
      await benchmarkKernels(engine, chosen, options, (timing) => {
        timings.push(timing);
        seen.add(`${timing.op} ${timing.case}`);
        progress.update(seen.size, { op: timing.op });
      });
      progress.finish();
      const { name: adapter, timestamps } = engine.profile;
      engine.destroy();
      print(
        options.json,
        () => ({
          adapter,
          timestamps,
          peak: { f32_flops_per_second: peak.f32, f16_flops_per_second: peak.f16 ?? null, copy_bytes_per_second: peak.bandwidth },
          kernels: timings.map((t) => ({ ...t, ...rates(t), share_of_peak: shareOfPeak(t, peak), share_of_copy: (rates(t).gbytes_per_second * 1e9) / peak.bandwidth })),
        }),
        () => toText(adapter, timestamps, peak, timings),
      );
    });
}

const rates = (t: KernelTiming) => ({ gflops_per_second: t.flops / t.milliseconds / 1e6, gbytes_per_second: t.bytes / t.milliseconds / 1e6 });

/** Arithmetic is f32 whatever the storage type, so f32's peak is the yardstick. */
const shareOfPeak = (t: KernelTiming, peak: Peak): number => (rates(t).gflops_per_second * 1e9) / peak.f32;

function toText(adapter: string, timestamps: boolean, peak: Peak, timings: readonly KernelTiming[]): string {
  const percent = (x: number) => `${(100 * x).toFixed(1)}%`;
  const rows = timings.map((t) => {
    const { gflops_per_second: gflops, gbytes_per_second: gbytes } = rates(t);
    return [t.op, t.case, t.variant, t.dtype, t.milliseconds.toFixed(3), gflops.toFixed(2), gbytes.toFixed(2), percent(shareOfPeak(t, peak)), percent((gbytes * 1e9) / peak.bandwidth)];
  });
  return [
    `${adapter}: peak ${(peak.f32 / 1e9).toPrecision(4)} GFLOP/s f32, copy ${(peak.bandwidth / 1e9).toPrecision(4)} GB/s`,
    timestamps ? 'GPU time of one call, median' : 'no timestamp-query here: wall time of one submission, so small kernels look slow',
    '',
    formatTable([['op', 'case', 'variant', 'type', 'ms', 'GFLOP/s', 'GB/s', 'of peak', 'of copy'], ...rows], 4),
  ].join('\n');
}
