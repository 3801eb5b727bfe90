// The playground beyond its bundled models on a good day: slow servers and folders of the disk, no WebGPU, models and files that mean harm. Part of
// tests/browser/playground.mjs.
import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { deflateRawSync } from 'node:zlib';
import { strFromU8, strToU8, unzipSync, zipSync } from 'fflate';
import { root } from '../../scripts/build.mjs';
import { launchChrome, serve } from '../../scripts/chrome.mjs';
import { serveWeb, webDirectory } from '../../scripts/web.mjs';
import { pictures } from '../helpers/pictures.mjs';
import { check, Person } from './person.mjs';

const { decode } = createRequire(import.meta.url)('fast-png');

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
    await person.until(() => document.querySelectorAll('.experiment').length === 12 && document.querySelectorAll('.tour math').length > 20);
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

/** The worker's device can be had, to destroy it; for a moment after that there is no adapter, as while a driver starts again. */
const losing = `{
  const { requestDevice } = GPUAdapter.prototype;
  GPUAdapter.prototype.requestDevice = async function (...rest) {
    const device = (globalThis.device = await requestDevice.apply(this, rest));
    void device.lost.then(async () => (await caches.open('losses')).put('/lost', new Response('')));
    return device;
  };
  const { requestAdapter } = GPU.prototype;
  GPU.prototype.requestAdapter = async function (...rest) {
    const down = await (await caches.open('losses')).delete('/lost');
    return down ? null : requestAdapter.apply(this, rest);
  };
}`;

/** Text that becomes elements and runs wherever somebody takes it for HTML. */
const payload = `"'><img class="payload" src="x" onerror="globalThis.hacked='img'"><script class="payload">globalThis.hacked='script'</script><svg class="payload" onload="globalThis.hacked='svg'"></svg><a class="payload" href="javascript:globalThis.hacked='link'">x</a>\${globalThis.hacked='template'}`;
/** What Preact would take for an element if it came as an object of the page's own making. */
const element = { type: 'img', props: { class: 'payload', src: 'x', onerror: "globalThis.hacked='vnode'" }, key: null, ref: null, constructor: null, __v: 1 };
const pollution = `"__proto__": {"polluted": "__proto__"}, "constructor": {"prototype": {"polluted": "constructor"}}, "prototype": {"polluted": "prototype"}`;

/** A safetensors file with another header. */
function reheaded(bytes, change) {
  const length = Number(bytes.readBigUInt64LE(0));
  const header = Buffer.from(change(JSON.parse(bytes.toString('utf8', 8, 8 + length))));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([size, header, bytes.subarray(8 + length)]);
}

/** Folders that mean harm, by name: their files, and what the page is to say of each. `trap` is a server that nobody may ask anything. */
async function hostileModels(trap) {
  const read = (...path) => readFile(join(root, ...path));
  const digits = {};
  for (const file of ['model_index.json', 'bruit.json', 'scheduler/scheduler_config.json', 'unet/config.json', 'unet/diffusion_pytorch_model.safetensors']) digits[file] = await read('models', 'digits', file);
  const weights = 'unet/diffusion_pytorch_model.safetensors';
  const json = (file) => JSON.parse(digits[file].toString());
  const text = {};
  for (const file of ['model_index.json', 'scheduler/scheduler_config.json', 'text_encoder/config.json', 'text_encoder/model.safetensors', 'unet/config.json', 'unet/diffusion_pytorch_model.safetensors', 'vae/config.json', 'vae/diffusion_pytorch_model.safetensors', 'tokenizer/merges.txt', 'tokenizer/special_tokens_map.json', 'tokenizer/tokenizer_config.json', 'tokenizer/vocab.json']) text[file] = await read('tests', 'goldens', 'pipeline_sd_tiny', file);
  const config = json('unet/config.json');
  const said = (words) => ({ says: words });
  const names = Array.from({ length: 11 }, (_, i) => `${i} ${payload}`);
  /** JSON with `more` as it is written, keys twice and all. */
  const spliced = (object, more) => JSON.stringify(object).replace(/^\{/, `{${more}, `);
  return {
    // Sound weights, so it loads: labels, notes, metadata and unused components hold the rest.
    names: {
      loads: true,
      files: {
        ...digits,
        'model_index.json': spliced({ ...json('model_index.json'), _name_or_path: payload, [payload]: [payload, payload], [`${trap}/component`]: ['diffusers', 'UNet2DModel'], '../other': ['diffusers', 'UNet2DModel'], '//other.test/x': ['diffusers', 'UNet2DModel'] }, pollution),
        'bruit.json': spliced({ ...json('bruit.json'), class_names: names }, pollution),
        'unet/config.json': JSON.stringify({ ...config, _name_or_path: payload, [`_${payload}`]: payload }),
        [weights]: reheaded(digits[weights], (header) => JSON.stringify({ __metadata__: { format: payload, [payload]: payload }, ...header })),
      },
    },
    elements: { ...said(/class_names" must be a list of strings/), files: { ...digits, 'bruit.json': JSON.stringify({ ...json('bruit.json'), class_names: Array.from({ length: 11 }, () => element) }) } },
    pipeline: { ...said(/This page samples .*model_index\.json names "'><img class="payload"/), files: { ...digits, 'model_index.json': JSON.stringify({ ...json('model_index.json'), _class_name: payload }) } },
    object: { ...said(/model_index\.json names \[object Object\]/), files: { ...digits, 'model_index.json': JSON.stringify({ ...json('model_index.json'), _class_name: element }) } },
    inherited: { ...said(/model_index\.json names constructor/), files: { ...digits, 'model_index.json': JSON.stringify({ ...json('model_index.json'), _class_name: 'constructor' }) } },
    blocks: { ...said(/"down_block_types" holds .*<img class=/), files: { ...digits, 'unet/config.json': JSON.stringify({ ...config, down_block_types: config.down_block_types.map(() => payload) }) } },
    activation: { ...said(/^act_fn .*<img class=.* is unknown/), files: { ...digits, 'unet/config.json': JSON.stringify({ ...config, act_fn: payload }) } },
    keys: { ...said(/unknown entr.*<img class=/), files: { ...digits, 'unet/config.json': JSON.stringify({ ...config, [payload]: 1 }) } },
    polluted: { ...said(/unknown entries "constructor", "prototype"/), files: { ...digits, 'unet/config.json': spliced(config, pollution) } },
    scheduler: { ...said(/<img class=/), files: { ...digits, 'scheduler/scheduler_config.json': JSON.stringify({ ...json('scheduler/scheduler_config.json'), _class_name: payload }) } },
    tensors: { ...said(/<img class=/), files: { ...digits, [weights]: reheaded(digits[weights], (header) => spliced(Object.fromEntries(Object.entries(header).map(([name, value], i) => [i === 3 ? payload : name, value])), '"__proto__": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}')) } },
    dtype: { ...said(/<img class=/), files: { ...digits, [weights]: reheaded(digits[weights], (header) => JSON.stringify(Object.fromEntries(Object.entries(header).map(([name, value]) => [name, { ...value, dtype: payload }])))) } },
    shards: {
      ...said(/weight_map gives tensor .* a plain file name beside the index is wanted/),
      files: { ...digits, [weights]: undefined, 'unet/diffusion_pytorch_model.safetensors.index.json': JSON.stringify({ metadata: { total_size: payload }, weight_map: { 'conv_in.weight': `${trap}/shard.safetensors`, [payload]: '../../other' } }) },
    },
    noJson: { ...said(/model_index\.json is not JSON/), files: { ...digits, 'model_index.json': payload } },
    page: { ...said(/is not JSON/), files: { ...digits, 'model_index.json': `<!doctype html><html>${payload}</html>` } },
    tokenizer: {
      ...said(/the tokenizer in tokenizer has no token "__proto__" \(its eos_token\)/),
      files: { ...text, 'tokenizer/tokenizer_config.json': JSON.stringify({ bos_token: payload, eos_token: '__proto__', unk_token: 'constructor' }) },
    },
    vocabulary: { ...said(/gives "__proto__" the id \{"polluted":"__proto__"\}/), files: { ...text, 'tokenizer/vocab.json': spliced(JSON.parse(text['tokenizer/vocab.json'].toString()), pollution) } },
    merges: { ...said(/./), files: { ...text, 'tokenizer/merges.txt': `#version: 0.2\n${payload}\n__proto__ constructor\n`, 'tokenizer/tokenizer_config.json': JSON.stringify({ model_max_length: payload, [payload]: payload }) }, either: true },
    huge: { ...said(/adapter binds at most|takes .* MiB/), files: { ...digits, 'unet/config.json': JSON.stringify({ ...config, sample_size: 8192 }) }, stays: true },
  };
}

/** A server of another origin that lets every page read it, and one that counts what it is asked. */
const listening = (server) => new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(`http://127.0.0.1:${server.address().port}`)));

/** A zip of a few hundred kilobytes whose one file says that it is small and unpacks to half a gigabyte. */
function lyingZip() {
  const packed = deflateRawSync(Buffer.alloc(512 * 2 ** 20));
  const name = Buffer.from('weights');
  const fields = Buffer.alloc(26); // of the entry: version, flags, method, time, checksum, sizes, lengths
  fields.writeUInt16LE(20, 0);
  fields.writeUInt16LE(8, 4);
  fields.writeUInt32LE(packed.length, 14);
  fields.writeUInt32LE(10, 18);
  fields.writeUInt16LE(name.length, 22);
  const entry = Buffer.concat([Buffer.from('PK\x03\x04'), fields, name, packed]);
  const directory = Buffer.concat([Buffer.from('PK\x01\x02\x14\x00'), fields, Buffer.alloc(14), name]);
  const end = Buffer.alloc(22);
  end.write('PK\x05\x06', 'latin1');
  end.writeUInt16LE(1, 8);
  end.writeUInt16LE(1, 10);
  end.writeUInt32LE(directory.length, 12);
  end.writeUInt32LE(entry.length, 16);
  return Buffer.concat([entry, directory, end]);
}

/** The most memory that any process of the browser has held so far, in bytes. */
async function chromeMemory(browser) {
  const status = async (pid) => (await readFile(`/proc/${pid}/status`, 'utf8').catch(() => ''));
  const own = String(browser.process().pid);
  let most = 0;
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const text = await status(pid);
    if (/^PPid:\s+(\d+)/m.exec(text)?.[1] === own) most = Math.max(most, 1024 * Number(/^VmHWM:\s+(\d+)/m.exec(text)?.[1] ?? 0));
  }
  check(most > 0, 'the browser has no processes');
  return most;
}

/** What would have changed if a model's text had run: in the page and in its workers. */
async function harmless(page, trapped) {
  const state = () => ({ hacked: globalThis.hacked, polluted: {}.polluted, properties: Object.getOwnPropertyNames(Object.prototype).sort().join() });
  const plain = Object.getOwnPropertyNames(Object.prototype).sort().join();
  for (const where of [page, ...page.workers()]) {
    const found = await where.evaluate(state);
    check(found.hacked === undefined && found.polluted === undefined && found.properties === plain, `something ran: ${JSON.stringify(found)}`);
  }
  const strange = await page.evaluate(() => [...document.querySelectorAll('.payload, [onerror], [onload], script:not([src]), iframe, object, embed, a[href^="javascript:" i], base')].map((e) => e.outerHTML.slice(0, 100)));
  check(strange.length === 0, `elements of a model's making: ${strange}`);
  check(trapped.length === 0, `a model made the page ask for ${trapped}`);
}

export const trust = {
  async 'sample: a model of the Hub with its progress, kept for the next visit; a folder of the disk'(person) {
    const asked = [];
    // Weights lie elsewhere and come slowly, as on the Hub.
    const hub = createServer((request, response) => {
      const [, file] = /^\/(?:someone\/digits\/resolve\/v1|cdn)\/(.*)$/.exec(request.url) ?? [];
      asked.push(`${request.method} ${request.url}`);
      const always = { 'access-control-allow-origin': '*' };
      void readFile(join(root, 'models', 'digits', file ?? 'none')).then(
        async (bytes) => {
          if (/safetensors$/.test(file) && !request.url.startsWith('/cdn/')) return response.writeHead(302, { ...always, location: `/cdn/${file}` }).end();
          response.writeHead(200, { ...always, 'content-length': bytes.length });
          if (request.method === 'HEAD') return response.end();
          const part = Math.ceil(bytes.length / 5);
          for (let at = 0; at < bytes.length; at += part) {
            response.write(bytes.subarray(at, at + part));
            if (bytes.length > 1e5) await new Promise((resolve) => setTimeout(resolve, 200));
          }
          response.end();
        },
        () => response.writeHead(404, always).end(),
      );
    });
    const hubUrl = await listening(hub);
    const server = await changedWorkers({ hub: `{ const own = fetch; globalThis.fetch = (url, init) => own(String(url).replace('https://huggingface.co/', '${hubUrl}/'), init); }` });
    const { page, broken } = await openPage(person.page.browser(), `${server.url}/hub/`);
    const visitor = new Person(page, server.url);
    const look = async () => {
      await visitor.until(() => document.querySelector('.chips'), 90_000);
      await visitor.fill('From', 'hub');
      await visitor.fill('Id on the Hub', 'someone/digits@v1');
      await visitor.press('Look at it first');
      await visitor.until(() => document.querySelector('#panel-sample .plan .primary:enabled'));
      return page.$eval('#panel-sample .plan', (e) => e.innerText);
    };
    try {
      const plan = await look();
      check(/someone\/digits, DDPMPipeline/.test(plan) && /to download\s+743 KiB/.test(plan) && /weights on the GPU\s+1\.4 MiB/.test(plan) && /one step of 4\s+\d/.test(plan), `the plan says "${plan}"`);
      check(!asked.some((line) => /^GET.*safetensors/.test(line)), 'weights were fetched before they were asked for');
      await page.evaluate(() => {
        window.labels = new Set();
        new globalThis.MutationObserver(() => window.labels.add(document.querySelector('#panel-sample form .progress')?.innerText)).observe(document.querySelector('#panel-sample form'), { subtree: true, childList: true, characterData: true, attributes: true });
      });
      await visitor.press('Download and load');
      await visitor.until(() => !document.querySelector('#panel-sample .plan'), 30_000);
      await visitor.ready('Save PNG', 90_000);
      const labels = await page.evaluate(() => [...window.labels].filter((text) => /^unet\/diffusion_pytorch_model\.safetensors: \d+ KiB of 743 KiB$/.test(text)));
      check(labels.length >= 3, `the progress was "${labels}"`);
      const { text } = decode(await visitor.download('Save PNG'));
      check(JSON.parse(text.parameters).model === 'someone/digits', `parameters ${text.parameters}`);
      // Another visit: all is here.
      await page.reload({ waitUntil: 'load' });
      check(/to download\s+nothing/.test(await look()), 'the model is not kept');
      await visitor.press('Load');
      await visitor.until(() => !document.querySelector('#panel-sample .plan') && /someone\/digits: /.test(document.querySelector('#panel-sample form').innerText), 30_000);
      check(asked.filter((line) => /^GET \/cdn/.test(line)).length === 1, `asked for ${asked}`);

      await visitor.fill('From', 'files');
      await (await page.$('#panel-sample input[type=file]')).uploadFile(join(root, 'models', 'digits'));
      await visitor.until(() => document.querySelector('#panel-sample .plan .primary:enabled'));
      await visitor.press('Load');
      await visitor.until(() => !document.querySelector('#panel-sample .plan') && /^digits: 371,129 weights/m.test(document.querySelector('#panel-sample form').innerText), 30_000);
      await visitor.ready('Save PNG', 90_000);
      const wrong = await broken();
      check(wrong.length === 0, wrong.join('\n'));
    } finally {
      await page.close();
      await server.close();
      await new Promise((resolve) => hub.close(resolve));
    }
    await person.page.bringToFront();
  },

  async 'without WebGPU: no secure context, no adapter'() {
    const browser = await launchChrome({ adapter: 'none', hosts: ['elsewhere.test'] });
    const server = await serveWeb({ prefix: '/play/', hosts: ['elsewhere.test'] });
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

  async 'a device that is lost, a worker that hangs: the page says so and goes on'(person) {
    const folders = await mkdtemp(join(tmpdir(), 'bruit-hanging-'));
    await cp(join(root, 'tests', 'goldens', 'pipeline_sd_tiny'), folders, { recursive: true });
    // A pattern that takes 2^n steps for a text of n characters.
    const vocab = JSON.parse(await readFile(join(folders, 'tokenizer', 'vocab.json'), 'utf8'));
    const model = { type: 'BPE', vocab, merges: [], unk_token: '<|endoftext|>' };
    await writeFile(join(folders, 'tokenizer', 'tokenizer.json'), JSON.stringify({ version: '1.0', added_tokens: [], normalizer: null, post_processor: null, decoder: null, model, pre_tokenizer: { type: 'Split', pattern: { Regex: '^(.+)+\\n' }, behavior: 'Isolated', invert: false } }));
    const server = await changedWorkers({ losing });
    const models = await serve({ '/': folders }, { headers: { 'access-control-allow-origin': '*' } });
    const { page, broken } = await openPage(person.page.browser(), `${server.url}/losing/`);
    const victim = new Person(page, server.url);
    const lose = async () => {
      await page.workers().at(-1).evaluate(() => globalThis.device.destroy());
      await victim.until(() => /graphics card was lost/.test(document.querySelector('main > [role=alert]')?.innerText) && / begun anew on /.test(document.querySelector('main > [role=alert]').innerText), 20_000);
    };
    const close = async () => {
      await victim.page.click('main > [role=alert] button');
      await victim.until(() => !document.querySelector('main > [role=alert]'));
    };
    try {
      // While it samples: the settings stay, and the next press draws.
      await victim.ready('Save PNG', 90_000);
      await victim.fill('Steps', '5');
      await victim.press('Sample');
      await victim.ready('Save PNG');
      const before = await victim.canvas('#panel-sample canvas');
      await victim.fill('Steps', '150');
      await victim.press('Sample');
      await victim.until(() => /step \d+ of 150/.test(document.querySelector('figcaption').textContent));
      await lose();
      await victim.picture('device-lost');
      await close();
      await victim.ready('Sample', 60_000);
      await victim.fill('Steps', '5');
      await victim.press('Sample');
      await victim.ready('Save PNG', 60_000);
      const after = await victim.canvas('#panel-sample canvas');
      check(after.hash === before.hash, 'the new device drew another picture');

      // While it trains: what was kept is carried on with.
      await victim.tab('train');
      await victim.ready('Train');
      await victim.fill('Steps of training', '30');
      await victim.fill('Batch', '4');
      await victim.fill('Picture and checkpoint every', '5');
      await victim.press('Train');
      await victim.until(() => /Kept in this browser at step 5/.test(document.querySelector('#panel-train').textContent), 120_000);
      await lose();
      await close();
      await victim.ready('Carry on', 60_000);
      const at = await page.$eval('#panel-train .plan', (e) => Number(/at step (\d+) of 30/.exec(e.textContent)[1]));
      check(at >= 5 && at < 30, `the run stands at step ${at}`);
      await victim.press('Carry on');
      await victim.until(() => /step 30 of 30/.test(document.querySelector('#panel-train .stage').textContent), 120_000);
      await victim.ready('Save checkpoint');
      const rows = strFromU8(unzipSync(await victim.download('Save checkpoint'))['metrics.jsonl']).trim().split('\n').map(JSON.parse);
      check(rows.length === 30 && rows.every((r, i) => r.step === i && Number.isFinite(r.loss)), `the run has ${rows.length} rows of metrics`);

      // A text that the model's tokenizer never gets through: Stop ends it all the same.
      await victim.tab('sample');
      await victim.fill('From', 'url');
      await victim.fill('Address of the folder', models.url);
      await victim.press('Look at it first');
      await victim.ready('Download and load');
      await victim.press('Download and load');
      await victim.until(() => [...document.querySelectorAll('#panel-sample button')].some((b) => b.innerText === 'Stop' && !b.disabled), 30_000);
      await new Promise((resolve) => setTimeout(resolve, 1000));
      await victim.press('Stop');
      await victim.until(() => /did not answer for 5 seconds: it hung and was ended/.test(document.querySelector('main > [role=alert]')?.innerText), 20_000);
      await victim.until(() => document.querySelector('#panel-sample button.primary:enabled') && !document.querySelector('#panel-sample progress'), 60_000);
      await victim.fill('From', 'digits');
      await victim.until(() => document.querySelector('.chips'), 30_000);
      await victim.ready('Save PNG', 60_000);
      const wrong = await broken();
      check(wrong.length === 0, wrong.join('\n'));
    } finally {
      await page.close();
      await Promise.all([server.close(), models.close()]);
      await rm(folders, { recursive: true });
    }
    await person.page.bringToFront();
  },

  async 'models that mean harm: nothing of them runs, their text is text'(person) {
    const trapped = [];
    const trap = createServer((request, response) => {
      trapped.push(`${request.method} ${request.url}`);
      response.writeHead(200, { 'access-control-allow-origin': '*', 'content-type': 'text/javascript' }).end("globalThis.hacked = 'trap'");
    });
    const trapUrl = await listening(trap);
    // Its words are in the status line, which errors repeat.
    const rude = createServer((request, response) => response.writeHead(418, payload, { 'access-control-allow-origin': '*' }).end());
    const rudeUrl = await listening(rude);
    const folders = await mkdtemp(join(tmpdir(), 'bruit-hostile-'));
    const models = await hostileModels(trapUrl);
    for (const [name, { files }] of Object.entries(models)) {
      for (const [file, contents] of Object.entries(files)) {
        if (contents === undefined) continue;
        await mkdir(dirname(join(folders, name, file)), { recursive: true });
        await writeFile(join(folders, name, file), contents);
      }
    }
    const own = await serveWeb({ prefix: '/play/', mounts: { '/play/hostile/': folders } });
    const other = await serve({ '/': folders }, { headers: { 'access-control-allow-origin': '*' } });
    const { page, broken } = await openPage(person.page.browser(), `${own.url}/play/`);
    const victim = new Person(page, own.url);
    /** Types an address and looks at what is there; loads it if the page offers that. Resolves with what the page objects to. */
    const visit = async (address, kind = 'url', load = true) => {
      await victim.fill('From', kind);
      await victim.fill(kind === 'hub' ? 'Id on the Hub' : 'Address of the folder', address);
      await victim.press('Look at it first');
      await victim.until(() => document.querySelector('#panel-sample .plan .primary:enabled') || document.querySelector('#panel-sample form [role=alert]'), 30_000);
      if (load && (await page.$('#panel-sample .plan .primary:enabled'))) {
        await page.click('#panel-sample .plan .primary');
        await victim.until(() => !document.querySelector('#panel-sample .plan') || document.querySelector('#panel-sample form > fieldset > [role=alert]'), 30_000);
      }
      return page.$$eval('#panel-sample form [role=alert]', (all) => all.map((e) => e.innerText).join('\n'));
    };
    try {
      await victim.until(() => document.querySelector('.chips'), 90_000);
      for (const [origin, base] of [['own', `${own.url}/play/hostile`], ['another', other.url]]) {
        for (const [name, { loads, says, either, stays }] of Object.entries(models)) {
          if (origin !== 'another' && !['names', 'shards', 'page', 'tensors'].includes(name)) continue;
          const text = await visit(loads ? `${base}/${name}/#${payload}` : `${base}/${name}`, 'url', !stays);
          await harmless(page, trapped);
          if (loads) {
            check(text === '', `the model "${name}" of ${origin} origin does not load: ${text}`);
            // The form shows the labels as they are written.
            await victim.until((t) => [...document.querySelectorAll('.chips button')].some((b) => b.innerText === t), 20_000, `3 ${payload}`);
            await victim.ready('Save PNG', 90_000);
          } else if (!either) check(says.test(text), `the model "${name}" of ${origin} origin: the page says "${text}"`);
        }
      }
      for (const [address, words] of [
        [`javascript:globalThis.hacked='address'`, /only http and https/],
        [`data:text/html,${payload}`, /only http and https/],
        [`blob:${own.url}/1234`, /only http and https/],
        ['file:///etc/passwd', /only http and https/],
        [payload, /there is no model_index\.json/],
        [rudeUrl, /there is no model_index\.json/],
      ]) {
        const text = await visit(address);
        check(words.test(text), `of the address "${address}" the page says "${text}"`);
        await harmless(page, trapped);
      }
      for (const id of [payload, `../${payload}`, '../../x', 'a/..', "a/b@../../../x"]) {
        check(/is not the id of a model on the Hub/.test(await visit(id, 'hub')), `the page takes "${id}" for an id of the Hub`);
        await harmless(page, trapped);
      }

      // A model whose names are all payload, in the other tabs and in files that are saved.
      await visit(`${other.url}/names/#${payload}`);
      await victim.until(() => document.querySelector('.chips')?.innerText.includes('<img'));
      await victim.ready('Save PNG', 90_000);
      const { text } = decode(await victim.download('Save PNG'));
      check(JSON.parse(text.parameters).model === `${other.url}/names/#${payload}`, `parameters ${text.parameters}`);
      await victim.tab('inside');
      await victim.until(() => document.querySelectorAll('.dispatch').length > 50, 90_000);
      check((await page.$eval('#panel-inside select', (e) => e.innerText)).includes('<img class="payload"'), 'Inside does not show the labels');
      for (const view of ['Layers', 'Weights', 'Memory', 'Kernels']) {
        await victim.press(view);
        await new Promise((resolve) => setTimeout(resolve, 500));
        await harmless(page, trapped);
      }
      const kernels = await page.$eval('#panel-inside', (e) => e.innerText);
      check(!/hacked/.test(kernels.replace(/.*<img class="payload".*/g, '')), 'a name of the model is in the text of a kernel');

      // A folder of the visitor's disk whose names are payload.
      await victim.tab('sample');
      const named = join(folders, payload.replaceAll('/', '_').slice(0, 200));
      await mkdir(named);
      await writeFile(join(named, 'model_index.json'), JSON.stringify({ _class_name: 'DDPMPipeline', unet: ['diffusers', 'UNet2DModel'] }));
      await victim.fill('From', 'files');
      await (await page.$('#panel-sample input[type=file]')).uploadFile(named);
      await victim.until(() => document.querySelector('#panel-sample form [role=alert]')?.innerText.includes('<img class='));
      await harmless(page, trapped);

      // What the page keeps is its own: nothing of a model lies where the service worker finds the page.
      const kept = await page.evaluate(async () => {
        const all = {};
        for (const name of await globalThis.caches.keys()) all[name] = (await (await globalThis.caches.open(name)).keys()).map((r) => r.url);
        return all;
      });
      const pages = Object.keys(kept).filter((name) => name.startsWith('bruit-page-'));
      check(pages.length === 1 && kept[pages[0]].length > 5 && kept[pages[0]].every((url) => url.startsWith(`${own.url}/play/`) && !url.includes('hostile')), `the service worker keeps ${kept[pages[0]]}`);
      check(kept['bruit-models'].length > 20 && kept['bruit-models'].every((url) => url.includes('/hostile/') || url.startsWith(other.url)), `models are kept as ${kept['bruit-models']}`);
      await page.reload({ waitUntil: 'load' });
      await victim.until(() => document.querySelector('.chips'), 90_000);
      await harmless(page, trapped);
      const wrong = (await broken()).filter((line) => !/418/.test(line));
      check(wrong.length === 0, wrong.join('\n'));
    } finally {
      await page.close();
      await Promise.all([own.close(), other.close(), new Promise((resolve) => trap.close(resolve)), new Promise((resolve) => rude.close(resolve))]);
      await rm(folders, { recursive: true });
    }
    await person.page.bringToFront();
  },

  async 'train: files that are too large, damaged or no runs are refused in words'(person) {
    const { page, broken } = await openPage(person.page.browser(), `${person.base}/play/#train`);
    const victim = new Person(page, person.base);
    const folder = await mkdtemp(join(tmpdir(), 'bruit-files-'));
    /** Drops files and resolves with what the page objects to, or how many pictures it took. */
    const drop = async (files) => {
      const answer = () => {
        const problem = document.querySelector('#panel-train .stage [role=alert]')?.innerText;
        const taken = document.querySelector('#panel-train .drop .quiet')?.innerText;
        return problem ?? (taken && !document.querySelector('#panel-train .drop progress') ? taken : undefined);
      };
      await page.evaluate((all) => {
        const transfer = new DataTransfer();
        for (const { name, type, bytes } of all) transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
        document.querySelector('.drop').dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true }));
      }, files.map(({ name, type, file }) => ({ name, type, bytes: [...file] })));
      await new Promise((resolve) => setTimeout(resolve, 100)); // the answer to the files before goes
      await victim.until(answer, 20_000);
      return page.evaluate(answer);
    };
    const go = async (name, zip) => {
      await writeFile(join(folder, name), zip);
      const before = (await victim.alert()) ?? '';
      await (await page.$('#panel-train input[accept=".zip"]')).uploadFile(join(folder, name));
      await victim.until((before) => ![undefined, before].includes(document.querySelector('#panel-train .stage [role=alert]')?.innerText), 30_000, before);
      return page.$eval('#panel-train .stage [role=alert]', (e) => e.innerText);
    };
    try {
      await victim.ready('Train', 30_000);
      await victim.press('Your images');
      const all = await drop(pictures);
      check(new RegExp(`^${pictures.length} pictures`).test(all), `of sound pictures the page says "${all}"`);
      for (const { name, type, sized } of pictures) {
        const said = await drop([{ name, type, file: sized(16_000, 12_000) }]);
        check(/: 16000x12000 pixels are more than the 100 megapixels allowed/.test(said), `of a ${name} of 16000x12000 the page says "${said}"`);
      }
      const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9" onload="globalThis.hacked='svg'"/>`;
      for (const [name, type, file, words] of [
        ['a.svg', 'image/svg+xml', Buffer.from(svg), /a\.svg: no PNG, JPEG, GIF, WebP, AVIF or BMP/],
        [`${payload.replaceAll('/', '')}.png`, 'image/png', Buffer.from('no picture'), /<img class="payload".*\.png: no PNG/],
        ['a.gif', 'image/gif', pictures[0].file.slice(0, 60), /a\.gif/],
        ['a.png', 'image/png', Buffer.concat([Buffer.from([0x89]), Buffer.from('PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x09\0\0\0\x09')]), /a\.png is no picture that this browser can read/],
      ]) {
        const said = await drop([{ name, type, file }]);
        check(words.test(said), `of ${name} the page says "${said}"`);
      }
      check(/none of these files is a picture/.test(await drop([{ name: 'a.html', type: 'text/html', file: Buffer.from(payload) }])), 'the page takes a text for a picture');

      const memory = await chromeMemory(page.browser());
      check(/"weights" unpacks to more than the 10 bytes that it declares/.test(await go('bomb.zip', lyingZip())), 'a zip that lies about its size is unpacked');
      const grown = (await chromeMemory(page.browser())) - memory;
      check(grown < 256 * 2 ** 20, `${grown} bytes more at the most while a zip was refused`);
      const run = { 'trainer_state.json': '{}', 'recipe.json': '{}', 'metrics.jsonl': '', 'page.json': '{}' };
      const zip = (files) => zipSync(Object.fromEntries(Object.entries({ ...run, ...files }).map(([name, text]) => [name, strToU8(text)])));
      const settings = { data: 'mnist', size: 'small', pixels: 32, grey: false, steps: 10, batch: 4, learningRate: 0.002, every: 5, seed: 0 };
      for (const [name, file, words] of [
        ['empty.zip', Buffer.alloc(0), /a damaged zip/],
        ['other.zip', zipSync({ a: strToU8('a') }), /has no trainer_state\.json/],
        ['up.zip', zipSync({ '../a': strToU8('a') }), /is no path within the folder/],
        ['notes.zip', zip({ 'page.json': payload }), /page\.json is not JSON/],
        ['element.zip', zip({ 'page.json': JSON.stringify({ ...settings, steps: element }) }), /page\.json has steps \{.*<?.*\}, which is no setting/],
        ['inherited.zip', zip({ 'page.json': JSON.stringify({ ...settings, size: 'constructor' }) }), /page\.json has size "constructor"/],
        ['recipe.zip', zip({ 'page.json': JSON.stringify(settings), 'recipe.json': `{${pollution}, "x": ${JSON.stringify(payload)}}` }), /the run’s recipe: /],
      ]) {
        const said = await go(name, file);
        check(words.test(said), `of ${name} the page says "${said}"`);
        await harmless(page, []);
      }
      const wrong = await broken();
      check(wrong.length === 0, wrong.join('\n'));
    } finally {
      await page.close();
      await rm(folder, { recursive: true });
    }
    await person.page.bringToFront();
  },
};
