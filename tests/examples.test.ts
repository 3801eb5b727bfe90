/** The programs of `examples/`, as a person would run them: pages in headless Chrome, seen by screenshots, and Node. */
import { execFile } from 'node:child_process';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { decode } from 'fast-png';
import type { Browser, Page } from 'puppeteer-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { bundledModel } from '../cli/sample';
import { ensureBuilt, root } from '../scripts/build.mjs';
import { launchChrome, serve } from '../scripts/chrome.mjs';
import { Engine } from '../src/engine/device';
import { toByte } from '../src/io/png';
import { directory } from '../src/node/directory';
import { DDPMPipeline } from '../src/pipelines/ddpm';
import { temporary } from './cli/bruit';
import { testDevice } from './helpers/device';

const engine = await Engine.create({ device: await testDevice() });
const pipeline = await DDPMPipeline.fromFolder(engine, directory(bundledModel()));

/** What the examples draw: grey bytes of one image [28,28] each. */
async function digits(labels: number[]): Promise<number[][]> {
  const { images } = await pipeline.generate({ labels, steps: 6, scheduler: 'ddim', seed: 7 });
  return labels.map((_, i) => Array.from(images.subarray(i * 784, (i + 1) * 784), toByte));
}

let server: Awaited<ReturnType<typeof serve>>;
let browser: Browser;
beforeAll(async () => {
  await ensureBuilt('index');
  server = await serve({ '/': root });
  browser = await launchChrome({ canvas: true });
});
afterAll(async () => {
  await browser.close();
  await server.close();
  pipeline.destroy();
});

async function open(name: string): Promise<Page> {
  const page = await browser.newPage();
  const errors: string[] = [];
  const broken = new Promise<never>((_, reject) => page.on('pageerror', (error) => reject(error as Error)));
  page.on('console', (message) => ['error', 'warn'].includes(message.type()) && errors.push(message.text()));
  await page.goto(`${server.url}/examples/${name}/index.html`);
  await Promise.race([broken, page.waitForFunction("document.title === 'done'", { timeout: 90_000 })]);
  // WebGPU's validation errors are warnings of the console.
  expect(errors.filter((text) => /webgpu|gpu|error/i.test(text) && !text.includes('favicon') && !text.includes('404'))).toEqual([]);
  return page;
}

/** The first `count` squares of `side` pixels from the left of a screenshot, each sampled down to 28x28 grey. */
async function seen(page: Page, count: number, side: number): Promise<number[][]> {
  const { data, width, channels } = decode(await page.screenshot({ clip: { x: 0, y: 0, width: count * side, height: side } }));
  const step = side / 28;
  return Array.from({ length: count }, (_, i) => Array.from({ length: 784 }, (_, p) => data[(Math.floor((Math.floor(p / 28) + 0.5) * step) * width + i * side + Math.floor(((p % 28) + 0.5) * step)) * channels]!));
}

function expectAlike(actual: number[][], expected: number[][]): void {
  for (const [i, image] of expected.entries()) {
    expect(image.filter((v) => v > 128).length, 'ink').toBeGreaterThan(20);
    expect(Math.max(...image.map((v, p) => Math.abs(v - actual[i]![p]!))), `image ${i}`).toBeLessThanOrEqual(2);
  }
}

describe('examples', () => {
  test('canvas: drawn from the buffer', async () => {
    const page = await open('canvas');
    expectAlike(await seen(page, 5, 28), await digits([0, 1, 2, 3, 4]));
    await page.close();
  });

  test('worker: ImageData in a page that stays free', async () => {
    const page = await open('worker');
    expectAlike(await seen(page, 3, 28), await digits([2, 4, 6]));
    await page.close();
  });

  test("three.js: textures on the renderer's device", async () => {
    const page = await open('three');
    expectAlike(await seen(page, 3, 56), await digits([3, 5, 8]));
    await page.close();
  });

  test("kernel: in the page's buffers and encoder", async () => {
    const page = await open('kernel');
    const text = (await page.$eval('pre', (element) => element.textContent))!;
    expect(text).toMatch(/^conv2d 3x3, 64 channels, 32x32: \d+\.\d+ ms, \d+\.\d+ GFLOP\/s, \d+% of peak$/m);
    expect(text).toMatch(/^corner 256, inside 576$/m);
    await page.close();
  });

  test('node: PNG files', async () => {
    const out = join(await temporary(), 'digits');
    // By its name the package finds itself from anywhere in this checkout.
    const { stdout } = await promisify(execFile)(process.execPath, [join(root, 'examples', 'node', 'sample.js'), out]);
    expect(stdout).toBe(`5 images and a grid in ${out}\n`);
    expect((await readdir(out)).sort()).toEqual(['00000.png', '00001.png', '00002.png', '00003.png', '00004.png', 'grid.png']);
    const images = await Promise.all([0, 1, 2, 3, 4].map(async (i) => Array.from(decode(await readFile(join(out, `0000${i}.png`))).data)));
    expectAlike(images, await digits([3, 1, 4, 1, 5]));
  });
});
