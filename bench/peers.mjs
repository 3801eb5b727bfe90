/**
 * The race against other engines, in one headless Chrome: npm run bench:peers -- [OPTIONS]
 *   --peers NAME,NAME  some of onnxruntime-web, tfjs, jax-js, webgpu-torch
 *   --fresh            run rows again that bench/results/ has
 * and those of race.mjs. Installs the peers into bench/peers/node_modules first. Results go to bench/results/ADAPTER.json (of --other and --features none beside it, by those names) after each row, so a race
 * that was cut short goes on where it stopped; then as .md and .svg beside it.
 */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { bundle, root } from '../scripts/build.mjs';
import { ours, parseRaceOptions, race, raceOptions } from './race.mjs';
import { adapterName, writeReport } from './report.mjs';

const directory = join(root, 'bench', 'peers');
const peers = [
  { name: 'onnxruntime-web', file: 'ort.mjs', package: 'onnxruntime-web' },
  { name: 'tfjs', file: 'tfjs.mjs', package: '@tensorflow/tfjs-backend-webgpu' },
  { name: 'jax-js', file: 'jax.mjs', package: '@jax-js/jax' },
  { name: 'webgpu-torch', file: 'torch.mjs', package: 'webgpu-torch' },
];

/** Installs the peers where they are missing or of another version than package.json asks for. */
async function install() {
  const { dependencies } = JSON.parse(await readFile(join(directory, 'package.json'), 'utf8'));
  const installed = (name) => readFile(join(directory, 'node_modules', name, 'package.json'), 'utf8').then((text) => JSON.parse(text).version, () => undefined);
  for (const [name, version] of Object.entries(dependencies)) {
    if ((await installed(name)) === version) continue;
    execFileSync('npm', ['install', '--no-package-lock', '--no-audit', '--no-fund'], { cwd: directory, stdio: 'inherit' });
    return;
  }
}

async function bundlePeer({ name, file, package: carrier }) {
  const { version } = JSON.parse(await readFile(join(directory, 'node_modules', carrier, 'package.json'), 'utf8'));
  await bundle(`bench/peers/${file}`, `bench/dist/peers/${name}.js`, 'browser', {
    sourcemap: false,
    minify: true,
    define: { VERSION: JSON.stringify(version) },
    // Their Node branches are never reached in a page.
    external: ['fs', 'path', 'crypto', 'util', 'worker_threads', 'perf_hooks', 'os', 'node-fetch', 'string_decoder', 'module'],
    logLevel: 'error',
  });
  return { name, module: `peers/${name}.js` };
}

const { values } = parseArgs({ options: { ...raceOptions, peers: { type: 'string', multiple: true, default: [] }, fresh: { type: 'boolean', default: false } } });
const wanted = values.peers.flatMap((text) => text.split(','));
const unknown = wanted.filter((name) => !peers.some((peer) => peer.name === name));
if (unknown.length) throw new Error(`no peer "${unknown[0]}": choose from ${peers.map(({ name }) => name).join(', ')}`);
await install();
const engines = [ours];
for (const peer of peers) if (wanted.length === 0 || wanted.includes(peer.name)) engines.push(await bundlePeer(peer));

let file;
let record;
const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'));
const options = parseRaceOptions(values);
await race(options, engines, {
  async onAdapter(adapter, measurePeak) {
    file = values.json ?? join(root, 'bench', 'results', `${[adapterName(adapter), ...options.title.split(/[ ,]+/).filter(Boolean)].join('-')}.json`);
    const before = existsSync(file) ? JSON.parse(await readFile(file, 'utf8')) : undefined;
    record = { adapter, ...(options.title && { title: options.title }), bruit: version, peak: await measurePeak(), results: before?.results ?? {} };
    return values.fresh ? {} : record.results;
  },
  async onRow(results) {
    Object.assign(record.results, results);
    await mkdir(join(root, 'bench', 'results'), { recursive: true });
    await writeFile(file, `${JSON.stringify(record, null, 1)}\n`);
    await writeReport(file, record);
  },
});
