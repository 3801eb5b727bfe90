// Runs tests/browser/suite.ts on a second WebGPU implementation (wgpu and naga, through deno) over Mesa's lavapipe:
//   node scripts/deno.mjs [FILTER]
// deno is installed by this command alone, into node_modules/.cache. Where deno or lavapipe cannot be had, the run is
// skipped with the reason.
import { execFile, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { bundle, load, root } from './build.mjs';

const execute = promisify(execFile);
const cache = join(root, 'node_modules', '.cache', 'bruit');
const denoVersion = '2.9.6';

/** Path of deno: the one on PATH, the one installed earlier, or one installed now from npm. */
export async function findDeno() {
  for (const directory of (process.env.PATH ?? '').split(delimiter)) {
    if (directory && existsSync(join(directory, 'deno'))) return join(directory, 'deno');
  }
  const prefix = join(cache, `deno-${denoVersion}`);
  const deno = join(prefix, 'node_modules', '@deno', `${process.platform}-${process.arch}${process.platform === 'linux' ? '-glibc' : ''}`, 'deno');
  if (existsSync(deno)) return deno;
  await mkdir(prefix, { recursive: true });
  // Its platform package holds the executable; the install script would only copy it.
  await execute('npm', ['install', '--prefix', prefix, '--no-save', '--no-audit', '--no-fund', '--ignore-scripts', `deno@${denoVersion}`], {
    cwd: prefix,
    timeout: 300_000,
  });
  if (!existsSync(deno)) throw new Error(`the npm package deno@${denoVersion} brings no executable for ${process.platform}-${process.arch}`);
  return deno;
}

/** Runs the suite; `onResult` as in tests/browser/run.mjs. Resolves with `{ passed, failed }` or `{ skipped: reason }`. */
export async function runInDeno(onResult = () => {}, filter = '') {
  const { adapterEnvironment, lavapipeManifest } = await load('adapter');
  if (!lavapipeManifest()) return { skipped: 'lavapipe (mesa-vulkan-drivers) is not installed' };
  let deno;
  try {
    deno = await findDeno();
    await execute(deno, ['--version']);
  } catch (error) {
    return { skipped: `deno cannot be installed or started: ${String(error.message).split('\n')[0]}` };
  }
  const script = await bundle('tests/browser/deno.ts', join(cache, 'browser', 'deno.mjs'), 'browser', { sourcemap: 'inline' });
  const counts = { passed: 0, failed: 0 };
  const record = (result) => {
    counts[result.ok ? 'passed' : 'failed'] += 1;
    onResult(result);
  };
  const goldens = join(root, 'tests', 'goldens');
  const child = spawn(deno, ['run', '--no-remote', '--no-npm', '--no-config', '--unstable-webgpu', '--allow-read', script, goldens, filter], {
    env: { ...process.env, ...(await adapterEnvironment('lavapipe')), DENO_DIR: join(cache, 'deno-dir'), NO_COLOR: '1', DENO_NO_UPDATE_CHECK: '1' },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stderr = '';
  child.stderr.on('data', (chunk) => (stderr = (stderr + chunk).slice(-4000)));
  const exited = new Promise((resolve) => child.once('close', (code, signal) => resolve(signal ?? code)));
  let done = false;
  for await (const line of createInterface({ input: child.stdout })) {
    if (!line.startsWith('{')) continue;
    const message = JSON.parse(line);
    if (message.done) done = true;
    else record(message);
  }
  const status = await exited;
  if (!done) record({ name: 'suite in deno', ok: false, error: `deno ended with ${status} before the suite did\n${stderr}`, milliseconds: 0 });
  if (counts.passed + counts.failed === 0) record({ name: 'suite in deno', ok: false, error: `no test matches "${filter}"`, milliseconds: 0 });
  return counts;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const result = await runInDeno(({ name, ok, error, milliseconds }) => {
    console.log(`${ok ? 'ok  ' : 'FAIL'} ${name} (${milliseconds.toFixed(0)} ms)${error ? `\n${error}` : ''}`);
  }, process.argv[2]);
  if (result.skipped) console.log(`skipped: ${result.skipped}`);
  else console.log(`${result.passed} passed, ${result.failed} failed`);
  process.exitCode = result.failed ? 1 : 0;
}
