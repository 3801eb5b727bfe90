/**
 * npm run bench:adapters: the same images on every WebGPU implementation that this machine has, each drawn twice: whether the bits repeat on one adapter, and how
 * far adapters are from each other. Writes bench/results/adapters.json and the README's section between its marks; what is missing is said with its reason.
 */
import { execFile } from 'node:child_process';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { bundle, load, root } from '../scripts/build.mjs';
import { launchChrome, serve } from '../scripts/chrome.mjs';
import { findDeno } from '../scripts/deno.mjs';

const execute = promisify(execFile);
const cache = join(root, 'node_modules', '.cache', 'bruit', 'adapters');
/** Largest difference of images in [0,1] that counts as agreement. */
const tolerance = 2e-3;

const lastLine = ({ stdout }) => JSON.parse(stdout.trim().split('\n').at(-1));

async function inChrome() {
  await bundle('bench/adapters/page.ts', join(cache, 'page.js'), 'browser', { sourcemap: false });
  await writeFile(join(cache, 'index.html'), '<!doctype html><meta charset="utf-8"><title>bruit</title><script type="module" src="page.js"></script>');
  const server = await serve({ '/': cache, '/models/': join(root, 'models'), '/tests/goldens/': join(root, 'tests', 'goldens') });
  let browser;
  try {
    browser = await launchChrome();
    const page = await browser.newPage();
    await page.goto(`${server.url}/index.html`);
    await page.waitForFunction('window.adapterImages !== undefined');
    return await page.evaluate(() => window.adapterImages());
  } finally {
    await browser?.close();
    await server.close();
  }
}

async function inNode(kind) {
  const { adapterEnvironment } = await load('adapter');
  const script = await bundle('bench/adapters/node.ts', join(cache, 'node.mjs'), 'node', { sourcemap: false });
  return lastLine(await execute(process.execPath, [script], { cwd: root, env: { ...process.env, ...(await adapterEnvironment(kind)) }, maxBuffer: 2 ** 28 }));
}

async function inDeno() {
  const { adapterEnvironment } = await load('adapter');
  const deno = await findDeno();
  const script = await bundle('bench/adapters/deno.ts', join(cache, 'deno.mjs'), 'browser', { sourcemap: false });
  return lastLine(
    await execute(deno, ['run', '--no-remote', '--no-npm', '--no-config', '--unstable-webgpu', '--allow-read', script, root], {
      env: { ...process.env, ...(await adapterEnvironment('lavapipe')), DENO_DIR: join(cache, 'deno-dir'), NO_COLOR: '1', DENO_NO_UPDATE_CHECK: '1' },
      maxBuffer: 2 ** 28,
    }),
  );
}

const places = {
  'Chrome, SwiftShader': inChrome,
  'Dawn, SwiftShader': () => inNode('swiftshader'),
  'Dawn, lavapipe': () => inNode('lavapipe'),
  'wgpu and naga, lavapipe': inDeno,
};

const decode = (text) => new Float32Array(Uint8Array.from(Buffer.from(text, 'base64')).buffer);
const difference = (a, b) => a.reduce((worst, v, i) => Math.max(worst, Math.abs(v - b[i])), 0);

/** Rows of the table: one for each place, model and precision; compared with the first place's f32 and with all that are f32. */
export function rowsOf(reports) {
  const rows = Object.entries(reports).flatMap(([place, { results = [] }]) => results.map(({ images, ...rest }) => ({ place, ...rest, values: decode(images) })));
  return rows.map(({ values, ...row }) => {
    const others = rows.filter((other) => other.model === row.model && other.precision === 'f32');
    const worst = Math.max(...others.map((other) => difference(values, other.values)));
    return { ...row, to_first: difference(values, others[0].values), worst, within: worst <= tolerance };
  });
}

const show = (x) => (x === 0 ? '0' : x.toExponential(1));

export function markdown(rows, missing) {
  const lines = rows.map(({ place, model, precision, repeats, to_first, worst, within }) => `| ${[place, model, precision, repeats ? 'yes' : '**no**', show(to_first), show(worst), within ? 'yes' : '**no**'].join(' | ')} |`);
  return [
    `| where | model | activations | same bits twice | to ${rows[0]?.place ?? 'the first'}, f32 | to any in f32, at most | within ${tolerance} |`,
    '| --- | --- | --- | --- | --: | --: | --- |',
    ...lines,
    ...missing.map(([place, reason]) => `\n${place}: not measured, ${reason}.`),
  ].join('\n');
}

if (process.argv[1] === import.meta.filename) {
  await mkdir(cache, { recursive: true });
  const reports = {};
  for (const [place, run] of Object.entries(places)) {
    const start = performance.now();
    try {
      reports[place] = await run();
      console.log(`${place}: ${reports[place].adapter}, ${((performance.now() - start) / 1000).toFixed(0)} s`);
    } catch (error) {
      reports[place] = { missing: String(error.message).split('\n')[0] };
      console.log(`${place}: skipped, ${reports[place].missing}`);
    }
  }
  const missing = Object.entries(reports).flatMap(([place, { missing: reason }]) => (reason ? [[place, reason]] : []));
  const rows = rowsOf(reports);
  const text = markdown(rows, missing);
  console.log(`\n${text}`);
  const results = join(root, 'bench', 'results');
  await writeFile(join(results, 'adapters.json'), `${JSON.stringify({ date: new Date().toISOString().slice(0, 10), tolerance, adapters: Object.fromEntries(Object.entries(reports).map(([place, { adapter, f16, missing: reason }]) => [place, reason ? { missing: reason } : { adapter, f16 }])), rows }, null, 2)}\n`);
  const readme = join(root, 'README.md');
  await writeFile(readme, (await readFile(readme, 'utf8')).replace(/<!-- adapters:start -->[^]*<!-- adapters:end -->/, () => `<!-- adapters:start -->\n${text}\n<!-- adapters:end -->`));
  process.exitCode = rows.every(({ repeats, within }) => repeats && within) ? 0 : 1;
}
