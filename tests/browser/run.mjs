// Runs tests/browser/suite.ts in headless Chrome: node tests/browser/run.mjs [FILTER]
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { bundle, root } from '../../scripts/build.mjs';
import { launchChrome, serve } from '../../scripts/chrome.mjs';

/** Runs the suite; calls `onResult({ name, ok, error?, milliseconds })` as results arrive and resolves with the counts, or `{ skipped: reason }`. */
export async function runInChrome(onResult = () => {}, filter = '') {
  const directory = join(root, 'node_modules', '.cache', 'bruit', 'browser');
  await mkdir(directory, { recursive: true });
  await bundle('tests/browser/page.ts', join(directory, 'suite.js'), 'browser', { sourcemap: 'inline' });
  await writeFile(join(directory, 'index.html'), '<!doctype html><meta charset="utf-8"><title>bruit</title><script type="module" src="suite.js"></script>');
  const counts = { passed: 0, failed: 0 };
  const record = (result) => {
    counts[result.ok ? 'passed' : 'failed'] += 1;
    onResult(result);
  };
  const server = await serve({ '/': directory, '/goldens/': join(root, 'tests', 'goldens') });
  let browser;
  try {
    try {
      browser = await launchChrome();
    } catch (error) {
      if (error.name === 'BruitError') return { skipped: error.message }; // no Chrome for this platform in the package
      throw error;
    }
    const page = await browser.newPage();
    // Whatever breaks the page itself must fail the run, or a suite that never started would pass.
    const broken = new Promise((_, reject) => {
      page.on('pageerror', (error) => reject(new Error(`page error: ${error.message}`)));
      page.on('error', (error) => reject(new Error(`page crashed: ${error.message}`)));
      browser.on('disconnected', () => reject(new Error('Chrome went away')));
    });
    broken.catch(() => {});
    await page.exposeFunction('reportTestResult', record);
    await page.goto(`${server.url}/index.html`, { waitUntil: 'load' });
    await Promise.race([broken, page.waitForFunction('window.runSuite !== undefined', { timeout: 30_000 })]);
    await Promise.race([broken, page.evaluate((text) => window.runSuite(text), filter)]);
  } catch (error) {
    record({ name: 'suite in Chrome', ok: false, error: error.stack ?? String(error), milliseconds: 0 });
  } finally {
    await browser?.close();
    await server.close();
  }
  if (counts.passed + counts.failed === 0) record({ name: 'suite in Chrome', ok: false, error: `no test matches "${filter}"`, milliseconds: 0 });
  return counts;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const counts = await runInChrome(({ name, ok, error, milliseconds }) => {
    console.log(`${ok ? 'ok  ' : 'FAIL'} ${name} (${milliseconds.toFixed(0)} ms)${error ? `\n${error}` : ''}`);
  }, process.argv[2]);
  console.log(counts.skipped ? `skipped: ${counts.skipped}` : `${counts.passed} passed, ${counts.failed} failed`);
  process.exitCode = counts.failed ? 1 : 0;
}
