/**
 * Times rows of the race in headless Chrome: node bench/race.mjs [OPTIONS]
 *   --only TEXT,TEXT   rows whose id or name contains one of these       --rounds N    samples of each engine (5)
 *   --other            rows of other sizes than the race's: what no kernel was tuned at
 *   --features WHICH   of a device: asked (for by the engine), all, none   --quick       3 short rounds
 *   --variant OP=NAME  force a kernel variant of ours                    --budget S    seconds that a row's rounds may take (120)
 *   --json FILE        write the results                                 --list        the rows
 *   --adapter gpu      the machine's GPU instead of SwiftShader
 * Engines take turns, a round at a time, so that they share whatever else the machine does. `cpu` is the least processor time of a run on a software
 * adapter, over its threads: what to compare by on a busy machine. The first outputs are compared with reference.mjs.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { copyFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { bundle, root } from '../scripts/build.mjs';
import { launchChrome, serve } from '../scripts/chrome.mjs';
import { expected } from './reference.mjs';
import { otherWorkloads, unetWeightValues, workloads } from './workloads.mjs';

const cache = join(root, 'node_modules', '.cache', 'bruit', 'bench');
const dist = join(root, 'bench', 'dist');
/** Largest error that counts as right, over the largest value: f32 leaves 1e-6 in a kernel, winograd 1e-5. */
const tolerances = { matmul: 1e-4, conv2d: 1e-4, gn_silu: 1e-4, attention: 1e-4, unet: 1e-3, train: 1e-4 };

async function writeTensors(name, tensors) {
  const index = [];
  const parts = [];
  let offset = 0;
  for (const { name: tensor, shape, data } of tensors) {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    index.push({ name: tensor, shape, offset, length: data.length });
    parts.push(bytes);
    offset += bytes.length;
  }
  await mkdir(cache, { recursive: true });
  await writeFile(join(cache, `${name}.bin`), Buffer.concat(parts));
  await writeFile(join(cache, `${name}.json`), JSON.stringify(index)); // last: it says that the file is whole
}

/** Inputs and expected output of a row, on disk; computed once and again when workloads.mjs or reference.mjs changed. */
async function prepareData(w, weights) {
  const sources = await Promise.all(['workloads.mjs', 'reference.mjs'].map((file) => readFile(join(root, 'bench', file), 'utf8')));
  const stamp = join(cache, `${w.id}.stamp`);
  const now = String(Buffer.from(await crypto.subtle.digest('SHA-256', Buffer.from(sources.join('')))).toString('hex'));
  if (existsSync(join(cache, `${w.id}.json`)) && (await readFile(stamp, 'utf8').catch(() => '')) === now) return;
  const inputs = w.inputs();
  const output = Float32Array.from(expected(w, inputs, weights));
  await writeTensors(w.id, [...Object.entries(inputs).map(([name, t]) => ({ name, ...t })), { name: 'expected', shape: [output.length], data: output }]);
  await writeFile(stamp, now);
}

export const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
};

/** Nanoseconds that the threads of a process have run, or NaN where there is no /proc. Chrome's own process holds the software adapter. */
function processorTime(pid) {
  let total = 0;
  try {
    for (const thread of readdirSync(`/proc/${pid}/task`)) total += Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0]);
  } catch {
    return NaN; // no /proc, or a thread that ended meanwhile
  }
  return total;
}

/** Runs one row with all engines in one page; returns results by engine name. */
async function raceRow(browser, url, w, engines, { rounds, budget, sampleMs, pageOptions, log }) {
  const page = await browser.newPage();
  page.setDefaultTimeout(0);
  const problems = [];
  page.on('console', (message) => void (['error', 'warn'].includes(message.type()) && problems.push(message.text())));
  try {
    await page.goto(`${url}/index.html`, { waitUntil: 'load' });
    const row = { ...w, inputs: undefined };
    await page.evaluate((r) => window.race.load(r), row);
    const results = {};
    const racing = [];
    for (const { name, module } of engines) {
      try {
        const opened = await page.evaluate((...args) => window.race.open(...args), name, `${url}/dist/${module}`, row, pageOptions(name));
        if (opened.cannot) {
          results[name] = { verdict: 'cannot' };
          continue;
        }
        const warm = opened.again_ms ?? (await page.evaluate((...args) => window.race.round(...args), name, 1));
        results[name] = { ...opened, verdict: opened.error <= tolerances[w.kind] ? 'ok' : 'wrong numbers', samples: [], cpu_samples: [], runs_per_sample: Math.min(50, Math.max(1, Math.round(sampleMs / warm))) };
        // A run of half a minute is timed well enough by one.
        if (warm > 20_000) results[name].samples.push(warm);
        racing.push(name);
      } catch (error) {
        results[name] = { verdict: 'failed', message: String(error.message).split('\n')[0] };
        log(`${name}: ${error.message}`);
      }
    }
    const start = performance.now();
    const { pid } = browser.process();
    for (let i = 0; i < rounds; i++) {
      for (const name of racing) {
        const { samples, runs_per_sample: k } = results[name];
        if (samples.length && (samples[0] > 20_000 || performance.now() - start > budget * 1000)) continue;
        const before = processorTime(pid);
        samples.push(await page.evaluate((...args) => window.race.round(...args), name, k));
        const spent = (processorTime(pid) - before) / 1e6 / k;
        if (spent >= 0) results[name].cpu_samples.push(spent);
      }
    }
    for (const name of racing) {
      const r = results[name];
      r.min_ms = Math.min(...r.samples);
      r.median_ms = median(r.samples);
      if (r.cpu_samples.length) r.cpu_ms = Math.min(...r.cpu_samples);
      r.gflops = w.flops / r.min_ms / 1e6;
      r.peak_bytes = await page.evaluate((engine) => window.race.peak(engine), name);
      if (name === ours.name) r.host_ms = await page.evaluate((engine) => window.race.host(engine, 9), name);
    }
    if (problems.length) log(`console: ${[...new Set(problems)].slice(0, 3).join(' | ')}`);
    return results;
  } finally {
    await page.close();
  }
}

export const number = (x, digits = 3) => (x === undefined ? '' : x >= 1000 ? x.toFixed(0) : x.toPrecision(digits));

const rowsOf = ({ other }) => (other ? otherWorkloads : workloads);

/**
 * Runs the chosen rows. `onAdapter` is told the adapter first, with a function that measures its peak, and gives the results so far, by row; rows
 * that it holds for all engines are not run again. `onRow` gets everything after each row.
 */
export async function race(options, engines, { onAdapter = async () => ({}), onRow = async () => {}, log = console.log } = {}) {
  const rows = rowsOf(options);
  const chosen = rows.filter(({ id, name }) => options.only.length === 0 || options.only.some((text) => id.includes(text) || name.includes(text)));
  if (chosen.length === 0) throw new Error(`no row matches ${options.only.join(', ')}; rows: ${rows.map(({ id }) => id).join(', ')}`);
  await bundle('bench/ours.mjs', join(dist, 'ours.js'), 'browser', { sourcemap: false });
  await mkdir(cache, { recursive: true });
  await copyFile(join(root, 'bench', 'page.mjs'), join(cache, 'page.js'));
  await writeFile(join(cache, 'index.html'), '<!doctype html><meta charset="utf-8"><title>race</title><script type="module" src="page.js"></script>');
  const { unetWeights } = await import(pathToFileURL(join(dist, 'ours.js')).href);
  let weights;
  if (chosen.some(({ kind }) => kind === 'unet' || kind === 'train')) {
    weights = unetWeightValues(unetWeights());
    await writeTensors('weights', weights);
  }
  const server = await serve({ '/': cache, '/data/': cache, '/dist/': dist, '/peers/': join(root, 'bench', 'peers', 'node_modules') });
  const browser = await launchChrome({ adapter: options.adapter });
  try {
    const page = await browser.newPage();
    await page.goto(`${server.url}/index.html`, { waitUntil: 'load' });
    const adapter = await page.evaluate(() => window.race.adapter());
    const results = await onAdapter(adapter, () => page.evaluate((url) => window.race.measure(url), `${server.url}/dist/${ours.module}`));
    await page.close();
    for (const w of chosen) {
      const known = results[w.id]?.engines ?? {};
      if (engines.every(({ name }) => known[name])) continue;
      await prepareData(w, weights);
      const raced = await raceRow(browser, server.url, w, engines, { ...options, log });
      results[w.id] = { name: w.name, kind: w.kind, flops: w.flops, bytes: w.bytes, date: new Date().toISOString(), engines: { ...known, ...raced } };
      for (const { name } of engines) log(describe(w, name, raced[name]));
      await onRow(results);
    }
    return { adapter, results };
  } finally {
    await browser.close();
    await server.close();
  }
}

function describe({ name: row }, engine, r) {
  if (!r.samples) return `${row.padEnd(36)}  ${engine.padEnd(16)}  ${r.verdict}${r.message ? `: ${r.message}` : ''}`;
  return [
    row.padEnd(36),
    engine.padEnd(16),
    `min ${number(r.min_ms)}`.padEnd(10),
    `median ${number(r.median_ms)} ms`.padEnd(18),
    `cpu ${number(r.cpu_ms)}`.padEnd(10),
    `${number(r.gflops)} GFLOP/s`.padEnd(15),
    `${r.dispatches} dispatches`.padEnd(16),
    `${number(r.peak_bytes / 2 ** 20)} MiB${r.plan?.all ? ` (planned ${number(r.plan.all / 2 ** 20)})` : ''}`.padEnd(engine === ours.name ? 26 : 10),
    ...(r.host_ms === undefined ? [] : [`host ${r.host_ms.toFixed(2)} ms`]),
    `first ${number(r.first_result_ms)} ms`.padEnd(16),
    `error ${r.error.toExponential(1)}${r.verdict === 'ok' ? '' : ` ${r.verdict.toUpperCase()}`}`,
  ].join('  ');
}

export const ours = { name: 'bruit', module: 'ours.js' };

/** Options that the race with and without peers share. */
export const raceOptions = {
  only: { type: 'string', multiple: true, default: [] },
  rounds: { type: 'string' },
  quick: { type: 'boolean', default: false },
  other: { type: 'boolean', default: false },
  features: { type: 'string', default: 'asked' },
  variant: { type: 'string', multiple: true, default: [] },
  budget: { type: 'string', default: '120' },
  adapter: { type: 'string', default: 'software' },
  json: { type: 'string' },
  list: { type: 'boolean', default: false },
};

export function parseRaceOptions(values) {
  const choices = ['asked', 'all', 'none'];
  if (!choices.includes(values.features)) throw new Error(`--features ${values.features}: choose from ${choices.join(', ')}`);
  const variants = Object.fromEntries(values.variant.map((text) => text.split('=')));
  return {
    only: values.only.flatMap((text) => text.split(',')),
    rounds: Number(values.rounds ?? (values.quick ? 3 : 5)),
    sampleMs: values.quick ? 60 : 150,
    budget: Number(values.budget),
    adapter: values.adapter,
    other: values.other,
    // What sets a race apart from that of the README.
    title: [...(values.other ? ['other sizes'] : []), ...(values.features === 'asked' ? [] : [values.features === 'none' ? 'no optional features' : 'all features'])].join(', '),
    pageOptions: (name) => ({ features: values.features, ...(name === ours.name && Object.keys(variants).length ? { variants } : {}) }),
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({ options: raceOptions });
  if (values.list) console.log(rowsOf(values).map(({ id, name }) => `${id.padEnd(32)} ${name}`).join('\n'));
  else {
    const options = parseRaceOptions(values);
    const { adapter, results } = await race(options, [ours]);
    console.log(`${adapter.description || adapter.architecture}, ${/Chrome\/[\d.]+/.exec(adapter.userAgent)?.[0]}`);
    if (values.json) await writeFile(values.json, `${JSON.stringify({ adapter, results }, null, 1)}\n`);
    const unplanned = Object.values(results).filter(({ engines: { [ours.name]: r } }) => r.plan && Math.abs(r.peak_bytes / r.plan.all - 1) > 0.1);
    for (const { name } of unplanned) console.error(`${name}: GPU memory is over a tenth away from the plan`);
    const slow = Object.values(results).filter(({ kind, engines: { [ours.name]: r } }) => kind === 'unet' && r.host_ms > 0.5);
    for (const { name } of slow) console.error(`${name}: the host takes over half a millisecond to submit a run`);
    if (unplanned.length || slow.length || Object.values(results).some(({ engines }) => engines[ours.name].verdict !== 'ok')) process.exitCode = 1;
  }
}
