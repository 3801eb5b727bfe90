// The whole test run: node scripts/test.mjs [--only STAGE,STAGE…]
// Stages: lint, typecheck, build, vitest, guard, chrome, web, naga. The last line counts tests over all stages; a stage that is one
// check counts as one test. Exits 1 if anything failed.
import { spawn } from 'node:child_process';
import { mkdir, readFile, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { root } from './build.mjs';

const modules = join(root, 'node_modules');
const total = { passed: 0, failed: 0, skipped: 0 };
const failures = [];

function node(script, args) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [script, ...args], { cwd: root, stdio: 'inherit' });
    child.once('error', reject);
    child.once('exit', (code) => resolve(code ?? 1));
  });
}

function fail(name, error) {
  total.failed += 1;
  failures.push(error ? `${name}: ${error}` : name);
}

/** A stage that passes or fails as a whole. */
function command(name, script, ...args) {
  return async () => {
    if ((await node(join(root, script), args)) === 0) total.passed += 1;
    else fail(name);
  };
}

async function vitest() {
  const report = join(modules, '.cache', 'bruit', 'vitest.json');
  await mkdir(dirname(report), { recursive: true });
  await rm(report, { force: true });
  const status = await node(join(root, 'scripts', 'with_adapter.mjs'), [
    'swiftshader', '--', process.execPath, join(modules, 'vitest', 'vitest.mjs'), 'run',
    '--reporter=default', '--reporter=json', `--outputFile.json=${report}`,
  ]);
  const before = total.failed;
  const results = await readFile(report, 'utf8').then(JSON.parse, () => undefined);
  for (const file of results?.testResults ?? []) {
    for (const { status: outcome, fullName } of file.assertionResults) {
      if (outcome === 'passed') total.passed += 1;
      else if (outcome === 'failed') fail(`vitest: ${file.name.slice(root.length + 1)}: ${fullName}`);
      else total.skipped += 1;
    }
    // A file that does not load, or whose hooks fail, has no failed test of its own.
    if (file.status === 'failed' && !file.assertionResults.some((test) => test.status === 'failed')) {
      fail(`vitest: ${file.name.slice(root.length + 1)}`, file.message);
    }
  }
  if (status !== 0 && total.failed === before) fail('vitest', `exit status ${status}`);
  if (!results?.testResults.length) fail('vitest', 'no test ran');
}

/** A stage that runs tests/browser/suite.ts on another WebGPU implementation. */
function suite(name, run) {
  return async () => {
    const result = await run(({ name: test, ok, error, milliseconds }) => {
      console.log(`${ok ? 'ok  ' : 'FAIL'} ${test} (${milliseconds.toFixed(0)} ms)${error ? `\n${error}` : ''}`);
      if (ok) total.passed += 1;
      else fail(`${name}: ${test}`, error?.split('\n')[0]);
    });
    if (result.skipped) {
      total.skipped += 1;
      console.log(`skipped: ${name}: ${result.skipped}`);
    }
  };
}

const stages = {
  lint: command('lint', 'node_modules/eslint/bin/eslint.js', '.', '--max-warnings', '0'),
  typecheck: command('typecheck', 'node_modules/typescript/bin/tsc', '--noEmit'),
  build: command('build', 'scripts/build.mjs'),
  vitest,
  guard: command('guard', 'scripts/run.mjs', '--adapter', 'swiftshader', 'bench/guard.mjs', 'bench/guard.json'),
  chrome: suite('chrome', async (onResult) => (await import('../tests/browser/run.mjs')).runInChrome(onResult)),
  web: suite('web', async (onResult) => (await import('../tests/browser/playground.mjs')).runPlayground(onResult)),
  naga: suite('naga', async (onResult) => (await import('./deno.mjs')).runInDeno(onResult)),
};

const only = process.argv[2] === '--only' ? (process.argv[3] ?? '').split(',') : Object.keys(stages);
const unknown = only.filter((name) => !(name in stages));
if (unknown.length || (process.argv.length > 2 && process.argv[2] !== '--only')) {
  console.error(`usage: node scripts/test.mjs [--only ${Object.keys(stages).join(',')}]`);
  process.exit(2);
}
for (const name of only) {
  console.log(`\n--- ${name}`);
  const start = performance.now();
  try {
    await stages[name]();
  } catch (error) {
    console.error(error);
    fail(name, error.message);
  }
  console.log(`--- ${name}: ${((performance.now() - start) / 1000).toFixed(1)} s`);
}
if (failures.length) console.log(`\nFailed:\n${failures.map((failure) => `  ${failure}`).join('\n')}`);
console.log(`\n${total.passed} passed, ${total.failed} failed${total.skipped ? `, ${total.skipped} skipped` : ''}`);
process.exitCode = total.failed ? 1 : 0;
