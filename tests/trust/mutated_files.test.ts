/** Damaged and hostile files. `npm run test:long` reads 100,000 of them. */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { bundle, root } from '../../scripts/build.mjs';
import { temporary } from '../cli/bruit';
import { long } from '../helpers/mode';

interface Report {
  readonly files: number;
  readonly accepted: number;
  readonly refused: number;
  readonly slowest: { readonly kind: string; readonly milliseconds: number };
  readonly largest: number;
  readonly growth: number;
}

test('mutated files: right numbers or a BruitError, in bounded time and memory', async () => {
  const script = await bundle('tests/trust/mutate.ts', join(root, 'node_modules', '.cache', 'bruit', 'run', 'mutate.mjs'), 'node', { sourcemap: 'inline' });
  const current = join(await temporary(), 'current');
  const [files, processes] = long ? [100_000, 10] : [2_000, 1];
  for (let seed = 1; seed <= processes; seed++) {
    const run = promisify(execFile)(process.execPath, ['--expose-gc', '--max-semi-space-size=2', script, root, String(files / processes), String(seed), current], { timeout: 550_000, maxBuffer: 2 ** 26 });
    const { stdout } = await run.catch((error: { stdout?: string; stderr?: string }) => {
      throw new Error(`seed ${seed}: ${error.stdout ?? ''} ${(error.stderr ?? String(error)).slice(-2000)}\nlast file: ${readFileSync(current, 'utf8').slice(0, 3000)}`);
    });
    const report = JSON.parse(stdout) as Report;
    if (long) console.log(stdout.trim());
    expect(report.files).toBe(files / processes);
    // Both must happen, or the mutations are too wild or too tame to find anything.
    expect(report.accepted).toBeGreaterThan(files / processes / 20);
    expect(report.refused).toBeGreaterThan(files / processes / 4);
    expect(report.slowest.milliseconds, report.slowest.kind).toBeLessThan(5_000);
    expect(report.growth).toBeLessThan(report.largest + 64 * 2 ** 20);
  }
}, 6_000_000);
