/** Folders behind HTTP, with a local server in the part of the Hub. */
import { createReadStream } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test, vi } from 'vitest';
import { estimatePipeline } from '../../src/pipelines/memory';
import { openModel } from '../../src/node/model_folder';
import { goldenPath } from '../helpers/golden';

const requests: string[] = [];
/** Breaks answers after so many bytes. */
let cutAfter: number | undefined;

/** /OWNER/NAME/resolve/REVISION/PATH as the Hub answers it: redirects, ETags, ranges. */
async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const url = new URL(request.url!, 'http://server');
  requests.push(`${request.method} ${url.pathname}${request.headers.range ? ` ${request.headers.range}` : ''}`);
  const resolved = /^\/someone\/tiny\/resolve\/(main|v1)\/(.*)$/.exec(url.pathname);
  if (resolved) {
    response.writeHead(302, { location: `/cdn/${resolved[2]}` }).end();
    return;
  }
  if (url.pathname.startsWith('/hostile/')) {
    // Every file there is: what is asked for above the folder, too.
    const index = { _class_name: 'DDPMPipeline', unet: ['diffusers', 'UNet2DModel'], [decodeURIComponent(url.pathname.split('/')[2]!)]: ['diffusers', 'UNet2DModel'] };
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(url.pathname.endsWith('model_index.json') ? index : { sample_size: 8 }));
    return;
  }
  if (url.pathname.startsWith('/gated/')) {
    response.writeHead(request.headers.authorization === 'Bearer secret' ? 404 : 401).end();
    return;
  }
  const path = goldenPath('pipeline_sd_tiny', url.pathname.replace('/cdn/', ''));
  const info = await stat(path).catch(() => undefined);
  if (!info?.isFile()) {
    response.writeHead(404).end();
    return;
  }
  const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0);
  const headers = { etag: `"${info.size}"`, 'content-length': info.size - from };
  response.writeHead(request.headers.range ? 206 : 200, request.headers.range ? { ...headers, 'content-range': `bytes ${from}-${info.size - 1}/${info.size}` } : headers);
  if (request.method === 'HEAD') response.end();
  else if (cutAfter === undefined) createReadStream(path, { start: from }).pipe(response);
  else {
    response.write((await readFile(path)).subarray(from, from + cutAfter), () => setTimeout(() => response.destroy(), 200));
  }
}

const server = createServer((request, response) => void answer(request, response));
await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
const endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
const cache = await mkdtemp(join(tmpdir(), 'bruit-hub-'));
vi.stubEnv('HF_ENDPOINT', endpoint);
afterAll(async () => {
  server.close();
  await rm(cache, { recursive: true, force: true });
});

const weights = 'unet/diffusion_pytorch_model.safetensors';
const bodies = (path: string): string[] => requests.filter((r) => r.startsWith('GET /cdn') && r.includes(path));

test('a model of the Hub: configs alone for an estimate, files cached, redirects followed', async () => {
  const folder = openModel('hf:someone/tiny@v1', { cache });
  const memory = await estimatePipeline(folder);
  expect(memory.components.map((c) => c.name)).toEqual(['text_encoder', 'unet', 'vae']);
  expect(bodies('safetensors')).toEqual([]);
  expect(await folder.has('nothing.json')).toBe(false);
  await openModel('hf:someone/tiny@v1', { cache }).text('unet/config.json');
  expect(bodies('unet/config.json').length).toBe(1);
  const sub = openModel('hf:someone/tiny/unet', { cache });
  expect(JSON.parse(await sub.text('config.json'))).toEqual(JSON.parse(await readFile(goldenPath('pipeline_sd_tiny', 'unet', 'config.json'), 'utf8')));
});

test('a fetch that was cut off goes on where it stopped, and the bytes are right', async () => {
  const seen: number[] = [];
  const folder = openModel('hf:someone/tiny', { cache, onFetch: (_, done) => seen.push(done) });
  cutAfter = 50_000;
  await expect(folder.source(weights)).rejects.toThrow(/broke after \d+ bytes of \d+; the same command goes on/);
  cutAfter = undefined;
  requests.length = 0;
  const source = await folder.source(weights);
  expect(bodies(weights)[0]).toMatch(/bytes=[1-9]\d*-$/);
  expect(Buffer.from(await source.read(0, source.size)).equals(await readFile(goldenPath('pipeline_sd_tiny', weights)))).toBe(true);
  await source.close?.();
  expect(seen.at(-1)).toBe(source.size);
  requests.length = 0;
  await (await folder.source(weights)).close?.();
  expect(bodies(weights)).toEqual([]);
});

test('any folder behind HTTP', async () => {
  const folder = openModel(`${endpoint}/cdn`, { cache });
  expect(JSON.parse(await folder.text('model_index.json'))).toMatchObject({ _class_name: 'StableDiffusionPipeline' });
});

test.each(['../../../../escaped', '../hostile', '/escaped', 'http://127.0.0.1:1/x', '..\\..\\escaped', 'unet/../../x'])('a component called %s leads nowhere', async (component) => {
  const inner = join(cache, 'inner', 'most');
  requests.length = 0;
  const folder = openModel(`${endpoint}/hostile/${encodeURIComponent(component)}/`, { cache: inner });
  await expect(estimatePipeline(folder)).rejects.toThrow(/is no path within the folder/);
  for (const read of [folder.has.bind(folder), folder.text.bind(folder), folder.source.bind(folder)]) await expect(read(`${component}/config.json`)).rejects.toThrow(/is no path within the folder/);
  expect(requests.filter((r) => !r.includes('/hostile/'))).toEqual([]);
  // Nothing was written but the folder's own files.
  expect((await readdir(cache, { recursive: true })).filter((file) => /escaped/.test(file))).toEqual([]);
});

test('classes with the names of what every object has are unknown', async () => {
  const folder = { name: 'made up', has: async (path: string) => path === 'model_index.json', text: async () => JSON.stringify({ _class_name: 'DDPMPipeline', unet: ['diffusers', 'constructor'], vae: ['diffusers', '__proto__'] }), source: () => Promise.reject(new Error('no')) };
  await expect(estimatePipeline(folder)).rejects.toThrow(/none of whose models is known/);
});

test('errors say what to do', async () => {
  expect(() => openModel('hf:tiny')).toThrow(/is called hf:OWNER\/NAME/);
  expect(() => openModel('hf:someone/../tiny')).toThrow(/is called/);
  await expect(openModel('hf:gated/model', { cache }).text('model_index.json')).rejects.toThrow(/401.*set HF_TOKEN/);
  vi.stubEnv('HF_TOKEN', 'secret');
  await expect(openModel('hf:gated/model', { cache }).text('model_index.json')).rejects.toThrow(/there is no model_index.json/);
  await expect(openModel('http://127.0.0.1:1/x', { cache }).text('a')).rejects.toThrow(/cannot reach/);
  // A cache that cannot be written.
  const file = join(cache, 'file');
  await mkdir(cache, { recursive: true });
  await writeFile(file, '');
  await expect(openModel('hf:someone/tiny', { cache: file }).text('model_index.json')).rejects.toThrow(/cannot write/);
});
