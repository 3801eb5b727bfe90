import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { openSafetensors, writeSafetensors } from '../../src/io/safetensors';
import { blobSource, bytesSource, urlSource, type ByteSource } from '../../src/io/source';
import { fileSource, openTensorFile } from '../../src/node/file_source';
import { messageOf } from './helpers';

const bytes = Uint8Array.from({ length: 200_000 }, (_, i) => (i * 7) ^ (i >> 8));
const folder = await mkdtemp(join(tmpdir(), 'bruit-source-'));
afterAll(() => rm(folder, { recursive: true }));

type Handler = (request: IncomingMessage, response: ServerResponse) => void;
let handler: Handler;
let requests: (string | undefined)[] = [];
const server = createServer((request, response) => {
  requests.push(request.headers.range);
  handler(request, response);
});
let url = '';
beforeAll(async () => {
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/w.safetensors`;
});
afterAll(() => {
  server.closeAllConnections();
  server.close();
});
afterEach(() => void (requests = []));

/** An honest server of `content`. */
const ranged =
  (content: Uint8Array, headers: Record<string, string> = {}): Handler =>
  (request, response) => {
    const [, begin, end] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '')!.map(Number) as [number, number, number];
    if (begin >= content.length) return void response.writeHead(416, { 'content-range': `bytes */${content.length}` }).end();
    const last = Math.min(end, content.length - 1);
    response.writeHead(206, { 'content-range': `bytes ${begin}-${last}/${content.length}`, ...headers }).end(content.subarray(begin, last + 1));
  };

const path = join(folder, 'bytes');
beforeAll(() => writeFile(path, bytes));

describe.each<[string, () => Promise<ByteSource>]>([
  ['bytesSource', async () => bytesSource(bytes)],
  ['bytesSource of an ArrayBuffer', async () => bytesSource(bytes.buffer)],
  ['bytesSource of a Node Buffer', async () => bytesSource(Buffer.from(bytes))],
  ['blobSource', async () => blobSource(new Blob([bytes]))],
  ['fileSource', () => fileSource(path)],
  ['urlSource', async () => ((handler = ranged(bytes)), urlSource(url))],
  ['urlSource without ranges', async () => ((handler = (_, response) => response.writeHead(200).end(bytes)), urlSource(url))],
])('%s', (_, open) => {
  test('reads ranges exactly, into memory of their own, and refuses others', async () => {
    const source = await open();
    expect(source.size).toBe(bytes.length);
    for (const [offset, length] of [[0, 8], [1, 65_535], [65_530, 100], [100_001, 99_999], [0, 200_000], [200_000, 0]] as const) {
      const part = await source.read(offset, length);
      expect(Buffer.compare(part, bytes.subarray(offset, offset + length))).toBe(0);
      part.fill(0);
    }
    expect([...(await source.read(3, 3))]).toEqual([...bytes.subarray(3, 6)]);
    for (const [offset, length] of [[200_000, 1], [-1, 2], [0, 200_001], [0.5, 1], [0, NaN]] as const) {
      expect(await messageOf('io', source.read(offset, length))).toContain(`cannot read ${length} bytes at offset ${offset}; the file has 200000 bytes`);
    }
    await source.close?.();
  });
});

test('a File gives its name', () => expect(blobSource(new File([], 'picked.safetensors')).name).toBe('picked.safetensors'));

describe('urlSource', () => {
  test('opening a safetensors file takes one request, a tensor beyond the first chunk another of just its range', async () => {
    const data = Float32Array.from({ length: 50_000 }, (_, i) => i);
    const file = writeSafetensors([{ name: 'a', dtype: 'F32', shape: [2], data: data.subarray(0, 2) }, { name: 'b', dtype: 'F32', shape: [50_000], data }]);
    handler = ranged(file);
    const store = await openSafetensors(await urlSource(url));
    expect(await store.readF32('a')).toEqual(data.subarray(0, 2));
    expect(requests).toEqual(['bytes=0-65535']);
    expect(await store.readF32('b')).toEqual(data);
    const at = store.tensors.get('b')!.byteOffset;
    expect(requests.slice(1)).toEqual([`bytes=${at}-${at + 199_999}`]);
  });

  test('an empty file', async () => {
    handler = ranged(new Uint8Array(0));
    expect((await urlSource(url)).size).toBe(0);
  });

  test('sends the headers given, through the fetch given', async () => {
    const seen: unknown[] = [];
    const source = await urlSource('https://example.org/w', {
      headers: { Authorization: 'Bearer t' },
      fetch: async (input, init) => {
        seen.push(String(input), init?.headers);
        return new Response('ab', { status: 206, headers: { 'content-range': 'bytes 0-1/2' } });
      },
    });
    expect(source.size).toBe(2);
    expect(seen).toEqual(['https://example.org/w', { Authorization: 'Bearer t', Range: 'bytes=0-65535' }]);
  });

  test('a large file from a server without ranges is refused, whether or not it tells its size', async () => {
    let sent = 0;
    handler = (_, response) => response.writeHead(200, { 'content-length': 2 ** 33 }).write('x');
    expect(await messageOf('io', urlSource(url))).toMatch(/does not support range requests and the file \(8589934592 bytes\) is over the 67108864/);
    const fetchEndless: typeof fetch = async () =>
      new Response(new ReadableStream({ pull: (controller) => (sent++, controller.enqueue(new Uint8Array(2 ** 20))) }), { status: 200 });
    expect(await messageOf('io', urlSource(url, { fetch: fetchEndless }))).toMatch(/size not given\) is over/);
    expect(sent).toBeLessThan(70);
  });

  test.each<[string, Handler, RegExp]>([
    ['404', (_, response) => response.writeHead(404).end('no'), /the server answered 404 Not Found.*206 was expected$/],
    ['401', (_, response) => response.writeHead(401).end(), /answered 401.*token/],
    ['no Content-Range', (_, response) => response.writeHead(206).end('x'), /no Content-Range.*Access-Control-Expose-Headers/],
    ['another range', (_, response) => response.writeHead(206, { 'content-range': 'bytes 5-6/9' }).end('xx'), /asked for bytes from 0, the server answered "Content-Range: bytes 5-6\/9"/],
    ['no total size', (_, response) => response.writeHead(206, { 'content-range': 'bytes 0-1/*' }).end('xx'), /answered "Content-Range: bytes 0-1\/\*"/],
    ['fewer bytes than announced', (_, response) => response.writeHead(206, { 'content-range': 'bytes 0-9/10' }).end('xx'), /asked for 10 bytes at offset 0, got 2/],
    ['a broken connection', (_, response) => void response.writeHead(206, { 'content-range': 'bytes 0-9/10', 'content-length': 10 }).write('xx', () => response.destroy()), /connection broke while reading 10 bytes/],
    ['no answer', (request) => request.socket.destroy(), /the request failed: fetch failed \(/],
  ])('%s', async (_, answer, message) => {
    handler = answer;
    expect(await messageOf('io', urlSource(url))).toMatch(message);
  });

  test('a file replaced meanwhile is an error, by its size or its ETag', async () => {
    handler = ranged(bytes, { etag: '"1"' });
    const source = await urlSource(url);
    handler = ranged(bytes, { etag: '"2"' });
    expect(await messageOf('io', source.read(100_000, 5))).toMatch(/changed on the server.*ETag "1".*ETag "2"/);
    handler = ranged(bytes.subarray(1), { etag: '"1"' });
    expect(await messageOf('io', source.read(100_000, 5))).toMatch(/changed on the server.*200000 bytes.*now 199999 bytes/);
    handler = (_, response) => response.writeHead(200).end(bytes);
    expect(await messageOf('io', source.read(100_000, 5))).toMatch(/answered 200/);
  });

  test('an abort rejects with its own reason', async () => {
    const controller = new AbortController();
    handler = () => controller.abort(new Error('enough'));
    await expect(urlSource(url, { signal: controller.signal })).rejects.toThrow('enough');
  });
});

describe('files', () => {
  test('what cannot be opened is named', async () => {
    expect(await messageOf('io', fileSource(join(folder, 'none')))).toMatch(/cannot open .*none: there is no such file/);
    expect(await messageOf('io', fileSource(folder))).toMatch(/it is a folder/);
  });

  test('a file cut short after it was opened', async () => {
    const cut = join(folder, 'cut');
    await writeFile(cut, bytes);
    const source = await fileSource(cut);
    await writeFile(cut, bytes.subarray(0, 10));
    expect(await messageOf('io', source.read(5, 10))).toMatch(/ended at byte 10, though it had 200000 bytes/);
    await source.close();
  });

  test('openTensorFile opens one file or an index, and closes', async () => {
    const one = join(folder, 'model-1.safetensors');
    await writeFile(one, writeSafetensors([{ name: 'w', dtype: 'F32', shape: [1], data: Float32Array.of(3) }]));
    const index = join(folder, 'model.safetensors.index.json');
    await writeFile(index, JSON.stringify({ weight_map: { w: 'model-1.safetensors' } }));
    for (const file of [one, index]) {
      const store = await openTensorFile(file);
      expect([...(await store.readF32('w'))]).toEqual([3]);
      expect(store.tensors.get('w')!.file).toBe(one);
      await store.close();
      await expect(store.readRaw('w')).rejects.toThrow(/cannot read .*: file closed/);
    }
    expect(await messageOf('safetensors', openTensorFile(path))).toMatch(/bytes: header length/);
  });
});
