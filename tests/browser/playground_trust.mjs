// The playground where something is wrong: no WebGPU, models and files that mean harm. Part of tests/browser/playground.mjs.
import { mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { launchChrome } from '../../scripts/chrome.mjs';
import { serveWeb, webDirectory } from '../../scripts/web.mjs';
import { check, Person } from './person.mjs';

/** Opens `url` in a page of its own; `broken` collects what a page must not have: errors that nobody caught, dialogs, refusals of its policy. */
async function openPage(browser, url) {
  const page = await browser.newPage();
  await page.setViewport({ width: 1280, height: 900 });
  const broken = [];
  page.on('pageerror', (error) => broken.push(`page error: ${error.message}`));
  page.on('dialog', (dialog) => {
    broken.push(`dialog: ${dialog.message()}`);
    void dialog.dismiss();
  });
  page.on('console', (line) => {
    if (line.type() === 'error' && !/404 \(Not Found\)/.test(line.text())) broken.push(line.text());
  });
  await page.evaluateOnNewDocument(() => {
    window.refused = [];
    globalThis.addEventListener('unhandledrejection', (e) => window.refused.push(`unhandled rejection: ${e.reason}`));
    document.addEventListener('securitypolicyviolation', (e) => window.refused.push(`policy: ${e.violatedDirective} ${e.blockedURI} ${e.sample}`));
  });
  await page.goto(url, { waitUntil: 'load' });
  return { page, broken: async () => [...broken, ...(await page.evaluate(() => window.refused))] };
}

/** The page says in words that anybody hears or sees why it cannot compute, and what needs no graphics card stays of use. */
async function withoutGpu(browser, url, reason) {
  const { page, broken } = await openPage(browser, url);
  const person = new Person(page, url);
  try {
    await person.until(() => document.querySelector('main > [role=alert]'), 20_000);
    const notice = await page.$eval('main > [role=alert]', (e) => ({ text: e.innerText, seen: e.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) && e.getBoundingClientRect().top < globalThis.innerHeight }));
    check(notice.seen, 'the notice cannot be seen');
    check(/WebGPU, which cannot be used here/.test(notice.text) && reason.test(notice.text), `the notice says "${notice.text}"`);
    check(!/undefined|TypeError|\[object|at \w+ \(/.test(notice.text), `the notice is not in plain words: "${notice.text}"`);
    check(/No WebGPU/.test(await page.$eval('header', (e) => e.innerText)), 'the header does not say that there is no WebGPU');
    // What a screen reader is told: an alert, with a link in it that the keyboard reaches.
    const find = (node, test) => (test(node) ? node : (node.children ?? []).map((child) => find(child, test)).find(Boolean));
    const alert = find(await page.accessibility.snapshot({ interestingOnly: false }), (node) => node.role === 'alert');
    check(alert && find(alert, (node) => node.role === 'link' && /browsers have WebGPU/.test(node.name)), 'no alert with a link in the accessibility tree');
    const link = await page.$('main > [role=alert] a');
    check((await link.evaluate((a) => a.href)) === 'https://github.com/gpuweb/gpuweb/wiki/Implementation-Status', 'the link leads elsewhere');
    await page.focus('[role=tab][aria-selected=true]');
    await page.keyboard.press('Tab');
    check(await link.evaluate((a) => document.activeElement === a), 'the keyboard does not go from the tabs to the link');

    await person.tab('train');
    check(await (await person.find('button', 'Train')).evaluate((b) => b.disabled), 'Train can be pressed');
    await person.tab('inside');
    await person.tab('tour');
    await person.until(() => document.querySelectorAll('.experiment').length === 9 && document.querySelectorAll('.tour math').length > 20);
    check((await page.$eval('.tour', (e) => e.innerText)).length > 5000, 'the tour cannot be read');
    await person.until(() => document.querySelectorAll('#experiment-schedule canvas').length > 0); // a plot, which computes nothing on the GPU
    await person.press('Add noise');
    await person.until(() => document.querySelector('#experiment-forward [role=alert]'));
    const answer = await page.$eval('#experiment-forward [role=alert]', (e) => e.innerText);
    check(reason.test(answer), `an experiment says "${answer}"`);
    await person.tab('bench');
    await person.ready('Measure');
    await person.press('Measure');
    await person.until(() => document.querySelector('#panel-bench [role=alert]'));
    const bench = await page.$eval('#panel-bench [role=alert]', (e) => e.innerText);
    check(reason.test(bench), `Bench says "${bench}"`);
    await person.tab('sample');
    check(await (await person.find('button', 'Sample')).evaluate((b) => b.disabled), 'Sample can be pressed');
    const wrong = await broken();
    check(wrong.length === 0, wrong.join('\n'));
  } finally {
    await page.close();
  }
}

/** Serves the built page with `prelude` before its workers: an adapter of another kind, as far as they can tell. */
async function changedWorkers(preludes) {
  const folders = await mkdtemp(join(tmpdir(), 'bruit-variants-'));
  const mounts = {};
  for (const [name, prelude] of Object.entries(preludes)) {
    const folder = await mkdtemp(join(folders, name));
    for (const file of await readdir(webDirectory)) {
      if (file === 'worker.js' || file === 'bench.js') await writeFile(join(folder, file), `${prelude}\n${await readFile(join(webDirectory, file), 'utf8')}`);
      else await symlink(join(webDirectory, file), join(folder, file));
    }
    mounts[`/${name}/`] = folder;
  }
  const server = await serveWeb({ mounts });
  return {
    url: server.url,
    async close() {
      await server.close();
      await rm(folders, { recursive: true });
    },
  };
}

const preludes = {
  small: `{
    const { get } = Object.getOwnPropertyDescriptor(GPUAdapter.prototype, 'limits');
    Object.defineProperty(GPUAdapter.prototype, 'limits', { get() {
      const own = get.call(this);
      return new Proxy(own, { get: (_, name) => (name === 'maxStorageBuffersPerShaderStage' ? 4 : own[name]) });
    } });
  }`,
  refusing: `GPUAdapter.prototype.requestDevice = async () => { throw new DOMException('the driver would not', 'OperationError'); };`,
  broken: `throw new Error('this script does not run');`,
};

export const trust = {
  async 'without WebGPU: no secure context, no adapter'() {
    const browser = await launchChrome({ adapter: 'none', hosts: ['elsewhere.test'] });
    const server = await serveWeb({ prefix: '/play/' });
    try {
      await withoutGpu(browser, `http://elsewhere.test:${new URL(server.url).port}/play/`, /plain http/);
      await withoutGpu(browser, `${server.url}/play/`, /no graphics card/);
    } finally {
      await browser.close();
      await server.close();
    }
  },

  async 'without WebGPU: an adapter that is too small, one that gives no device, a worker that does not start'(person) {
    const server = await changedWorkers(preludes);
    const browser = person.page.browser();
    try {
      await withoutGpu(browser, `${server.url}/small/`, /too small for this page: maxStorageBuffersPerShaderStage is 4 and must be 8/);
      await withoutGpu(browser, `${server.url}/refusing/`, /cannot be used: the driver would not/);
      const { page } = await openPage(browser, `${server.url}/broken/`);
      await new Person(page).until(() => /worker did not start/.test(document.querySelector('main > [role=alert]')?.innerText ?? ''), 20_000);
      await page.close();
    } finally {
      await server.close();
    }
    await person.page.bringToFront();
  },
};
