import { spawn } from 'node:child_process';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { build } from 'esbuild';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { BruitError } from '../../src/engine/errors';
import { appendJsonl, fileError, writeFileAtomic } from '../../src/node/files';
import { decodeImage } from '../../src/io/decode_image';
import { chartSvg, linearTicks, logTicks, plotMetrics, readMetrics, smoothed } from '../../src/node/plot';
import { formatDuration, Progress } from '../../src/node/progress';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'bruit-files-'));
});
afterAll(() => rm(folder, { recursive: true }));

test('writeFileAtomic makes folders, takes pieces, replaces, and leaves nothing else behind', async () => {
  const path = join(folder, 'deep', 'er', 'a.bin');
  await writeFileAtomic(path, Uint8Array.of(1, 2, 3));
  await writeFileAtomic(path, (function* () {
    yield Uint8Array.of(4);
    yield Uint8Array.of(5, 6);
  })());
  expect(Array.from(await readFile(path))).toEqual([4, 5, 6]);
  await expect(writeFileAtomic(path, 'x', { overwrite: false })).rejects.toThrow(/cannot write .*a\.bin: it exists already/);
  expect(Array.from(await readFile(path))).toEqual([4, 5, 6]);
  expect(await readdir(join(folder, 'deep', 'er'))).toEqual(['a.bin']);
  await writeFileAtomic(join(folder, 'new.txt'), 'héllo', { overwrite: false });
  expect(await readFile(join(folder, 'new.txt'), 'utf8')).toBe('héllo');
});

test('a source that fails halfway leaves the old file and no temporary one', async () => {
  const path = join(folder, 'halfway', 'a.bin');
  await writeFileAtomic(path, 'old');
  await expect(writeFileAtomic(path, (async function* () {
    yield new Uint8Array(1000);
    throw new BruitError('device', 'the device was lost');
  })())).rejects.toThrow('the device was lost');
  expect(await readFile(path, 'utf8')).toBe('old');
  expect(await readdir(join(folder, 'halfway'))).toEqual(['a.bin']);
});

test('killed at any moment, the file is one whole version', async () => {
  const bundle = join(folder, 'files.mjs');
  await build({ entryPoints: [resolve('src/node/files.ts')], bundle: true, platform: 'node', format: 'esm', outfile: bundle, logLevel: 'error' });
  const path = join(folder, 'killed', 'state.bin');
  const length = 4_000_000;
  await writeFileAtomic(path, new Uint8Array(length));
  const script = `import { writeFileAtomic } from ${JSON.stringify(bundle)};
    for (let i = 1; ; i++) { const write = writeFileAtomic(${JSON.stringify(path)}, new Uint8Array(${length}).fill(i % 256)); if (i === 1) console.log('writing'); await write; }`;
  const versions = new Set<number>();
  for (let kill = 0; kill < 8; kill++) {
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
    const ended = new Promise((done) => child.once('exit', done));
    await new Promise((done) => child.stdout.once('data', done));
    await new Promise((done) => setTimeout(done, 3 + kill * 9));
    child.kill('SIGKILL');
    await ended;
    const bytes = await readFile(path);
    expect(bytes.length).toBe(length);
    expect(bytes.every((b) => b === bytes[0])).toBe(true);
    versions.add(bytes[0]!);
  }
  expect(versions.size).toBeGreaterThan(1); // the writer did get to write
}, 30_000);

test('errors say what is wrong in words', async () => {
  await mkdir(join(folder, 'a-folder'));
  await expect(writeFileAtomic(join(folder, 'a-folder'), 'x')).rejects.toThrow(/cannot write .*a-folder: it is a folder, not a file/);
  await writeFile(join(folder, 'a-file'), '');
  await expect(writeFileAtomic(join(folder, 'a-file', 'x'), 'x')).rejects.toThrow(/a-file\/x: (a part of the path is a file|it exists already)/);
  await expect(writeFileAtomic(join(folder, 'n'.repeat(300)), 'x')).rejects.toThrow(/the name is too long/);
  expect(fileError('write', 'm.safetensors', Object.assign(new Error(), { code: 'ENOSPC' })).message).toBe('cannot write m.safetensors: no space left on the device.');
});

test.skipIf(process.getuid?.() === 0)('no permission is said so (skipped as root, who may write anywhere)', async () => {
  await mkdir(join(folder, 'locked'));
  await chmod(join(folder, 'locked'), 0o500);
  await expect(writeFileAtomic(join(folder, 'locked', 'x'), 'x')).rejects.toThrow(/no permission/);
});

test('metrics: appended lines come back; a killed run loses its half line only; a resumed step counts once', async () => {
  const path = join(folder, 'run', 'metrics.jsonl');
  await appendJsonl(path, { step: 1, loss: 0.5 }, { step: 2, loss: NaN });
  await writeFile(path, '{"step":3,"lo', { flag: 'a' });
  expect(await readMetrics(path)).toEqual([{ step: 1, loss: 0.5 }, { step: 2, loss: null }]);
  await appendJsonl(path, { step: 2, loss: 0.25 });
  expect(await readMetrics(path)).toEqual([{ step: 1, loss: 0.5 }, { step: 2, loss: 0.25 }]);
  await writeFile(path, 'garbage\n{"step":1}\n');
  await expect(readMetrics(path)).rejects.toThrow(/line 1 is not a metrics record.*garbage/);
  await expect(readMetrics(join(folder, 'none.jsonl'))).rejects.toThrow(/there is no such file/);
});

test('smoothing has no start bias and passes NaN over', () => {
  expect(Array.from(smoothed([2, 2, 2], 0.9)).map((v) => v.toFixed(9))).toEqual(['2.000000000', '2.000000000', '2.000000000']);
  expect(Array.from(smoothed([1, NaN, 3], 0.5))).toEqual([1, NaN, (0.5 * 0.5 + 1.5) / 0.75]);
});

test('ticks are round and inside the range', () => {
  expect(linearTicks(0, 1, 5)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1]);
  expect(linearTicks(-0.3, 0.72, 4)).toEqual([0, 0.5]);
  expect(linearTicks(0, 3e-4, 3)).toEqual([0, 1e-4, 2e-4, 3e-4]);
  expect(logTicks(0.03, 4)).toEqual([0.05, 0.1, 0.2, 0.5, 1, 2]);
  expect(logTicks(1e-12, 1)).toEqual([1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 0.01, 1]);
  expect(logTicks(0.2, 0.5)).toEqual([0.2, 0.3, 0.4, 0.5]);
});

test('chartSvg places points by value, breaks at NaN, and escapes text', () => {
  const panel = (y: number[], log: boolean) => ({ label: 'loss', log, height: 100, lines: [{ name: 'a', x: [0, 50, 100], y, color: '#123456' }] });
  const path = (y: number[], log = false): string => /<path d="([^"]*)" stroke="#123456"/.exec(chartSvg({ title: 'a<b & "c"', xLabel: 'step', panels: [panel(y, log)] }))![1]!;
  const points = (d: string): number[][] => d.split(/[ML]/).slice(1).map((p) => p.split(' ').map(Number));
  const [a, b, c] = points(path([0, 1, 2]));
  expect(b![0]! - a![0]!).toBeCloseTo(c![0]! - b![0]!, 0);
  expect(b![1]! - a![1]!).toBeCloseTo(c![1]! - b![1]!, 0);
  expect(c![1]!).toBeLessThan(a![1]!);
  const [d, e, f] = points(path([1, 10, 100], true));
  expect(e![1]! - d![1]!).toBeCloseTo(f![1]! - e![1]!, 0);
  expect(path([1, NaN, 2]).match(/M/g)!.length).toBe(2);
  expect(points(path([0, 1, 10], true)).length).toBe(2); // zero has no logarithm
  const svg = chartSvg({ title: 'a<b & "c"', xLabel: 'step', panels: [panel([1, 2, 3], false)] });
  expect(svg).toContain('a&#60;b &#38; &#34;c&#34;');
  expect(svg).not.toMatch(/NaN|undefined|Infinity/);
});

test('a long curve keeps its spikes at a bounded size', () => {
  const y = Float64Array.from({ length: 100_000 }, (_, i) => (i === 54_321 ? 9 : (i % 7) / 10));
  const svg = chartSvg({ title: '', xLabel: '', panels: [{ label: '', height: 100, lines: [{ name: 'a', x: y.map((_, i) => i), y, color: '#123456' }] }] });
  expect(svg.length).toBeLessThan(100_000);
  const heights = /<path d="([^"]*)" stroke="#123456"/.exec(svg)![1]!.split(/[ML]/).slice(1).map((p) => Number(p.split(' ')[1]));
  expect(heights.filter((h) => h < Math.max(...heights) - 80).length).toBe(1);
});

test('plotMetrics draws a PNG with ink of every curve and text; odd runs do not break it', async () => {
  const records = Array.from({ length: 300 }, (_, i) => ({ step: i + 1, loss: 1 / (i + 1) + 0.01, lr: 1e-4, grad_norm: 1 + (i % 3), eval_loss: i % 50 === 0 ? 0.5 : null }));
  const { width, height, data } = decodeImage(await plotMetrics(records, { title: 'A run' }), 'plot.png');
  expect([width, height]).toEqual([1920, expect.any(Number)]);
  const count = (r: number, g: number, b: number): number => {
    let n = 0;
    for (let p = 0; p < data.length; p += 3) if (data[p] === r && data[p + 1] === g && data[p + 2] === b) n++;
    return n;
  };
  for (const color of ['#2563eb', '#0d9488', '#d97706', '#1f2937', '#e5e7eb']) {
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16)) as [number, number, number];
    expect([color, count(r, g, b) > 100]).toEqual([color, true]);
  }
  for (const odd of [[{ step: 1, loss: 0.5 }], [{ step: 5, loss: null }], [{ step: 1, loss: 0 }, { step: 2, loss: 0 }], [{ step: 1, loss: -1 }, { step: 2, loss: 1e30 }]]) {
    expect(decodeImage(await plotMetrics(odd), 'odd.png').width).toBe(1920);
    expect(decodeImage(await plotMetrics(odd, { log: true }), 'odd.png').width).toBe(1920);
  }
  await expect(plotMetrics([{ step: 1 }])).rejects.toThrow(/no loss to plot/);
});

/** A stream and a clock under the test's control. */
function progress(options: { isTTY?: boolean; json?: boolean; total: number; start?: number; columns?: number }) {
  const written: string[] = [];
  let time = 0;
  const bar = new Progress({ label: 'train', unit: 'step', now: () => time, stream: { write: (t) => written.push(t), isTTY: options.isTTY ?? false, columns: options.columns ?? 100 }, total: options.total, json: options.json ?? false, start: options.start ?? 0 });
  return { written, bar, at: (t: number, done: number, extra?: Record<string, number>) => ((time = t), bar.update(done, extra)) };
}

test('progress in a terminal: one line redrawn at most ten times a second, with rate, ETA and extras', () => {
  const { written, at } = progress({ isTTY: true, total: 1000 });
  for (let i = 1; i <= 500; i++) at(i * 10, i, { loss: 0.123456 });
  expect(written.length).toBeLessThanOrEqual(51);
  expect(written.at(-1)).toMatch(/^\r\x1b\[Ktrain +\d+% █+.?░+ {2}\d+\/1000 {2}100 step\/s {2}ETA 5\.\d s {2}loss 0\.1235$/);
  at(5005, 1000);
  expect(written.at(-2)).toMatch(/100% .*1000\/1000 .* in 5\.0 s/);
  expect(written.at(-1)).toBe('\n');
  for (const line of progressLines(40)) expect(line.replace(/^\r\x1b\[K/, '').length).toBeLessThan(40);
});

function progressLines(columns: number): string[] {
  const { written, at } = progress({ isTTY: true, total: 100_000, columns });
  for (let i = 1; i < 20; i++) at(i * 1000, i * 100, { loss: 1, grad_norm: 2 });
  return written;
}

test('progress in a log is sparse; a resumed run counts its rate from where it began', () => {
  const { written, at } = progress({ total: 1000, start: 400 });
  for (let i = 401; i <= 1000; i++) at((i - 400) * 100, i);
  expect(written.length).toBe(5); // at once, after 15, 30 and 45 seconds, and the end
  expect(written[1]).toMatch(/^train +55% {2}551\/1000 {2}10\.0 step\/s {2}ETA 45 s\n$/);
  expect(written.at(-1)).toMatch(/1000\/1000 .*in 1:00\n$/);
});

test('progress as JSON lines', () => {
  const { written, at } = progress({ json: true, isTTY: true, total: 4 });
  for (let i = 1; i <= 4; i++) at(i * 2000, i, { loss: 0.5 });
  expect(written.map((l) => JSON.parse(l) as object)[1]).toEqual({ event: 'progress', label: 'train', done: 2, total: 4, rate: 0.5, eta_s: 4, loss: 0.5 });
  expect(written.every((l) => l.endsWith('\n'))).toBe(true);
});

test('durations', () => {
  expect([0.04, 9.94, 9.96, 59.4, 59.6, 3599.6, 7387, 90_000].map(formatDuration)).toEqual(['0.0 s', '9.9 s', '10 s', '59 s', '1:00', '1:00:00', '2:03:07', '1d 01:00']);
});
