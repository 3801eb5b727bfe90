// Headless Chrome with WebGPU on SwiftShader, from npm alone: no root, no system packages, no display.
import { createServer } from 'node:http';
import { createReadStream } from 'node:fs';
import { mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, extname, join, normalize, sep } from 'node:path';
import puppeteer from 'puppeteer-core';
import { load } from './build.mjs';

/**
 * Starts the embedded Chrome, on SwiftShader or (`adapter: 'gpu'`) whatever GPU it finds, or with no adapter to give (`'none'`). `close()` it; its profile
 * goes with it. With `canvas`, pages can show WebGPU canvases: Chrome's own drawing then goes through SwiftShader too, in a GPU process. Without, a canvas
 * loses its device. `hosts` are names that lead to this machine: pages from there are no secure contexts.
 */
export async function launchChrome({ adapter = 'software', canvas = false, hosts = [] } = {}) {
  const { embeddedChrome } = await load('swiftshader');
  const { executable, libraries } = await embeddedChrome();
  const profile = await mkdtemp(join(tmpdir(), 'bruit-chrome-'));
  const browser = await puppeteer.launch({
    executablePath: executable,
    headless: 'shell',
    userDataDir: profile,
    protocolTimeout: 1_800_000,
    args: [
      '--no-sandbox', // the sandbox needs root or user namespaces, which containers often lack
      '--no-zygote',
      ...(canvas ? ['--use-vulkan=swiftshader', '--use-angle=swiftshader', '--enable-features=Vulkan', '--ignore-gpu-blocklist', '--disable-gpu-sandbox'] : ['--in-process-gpu']),
      ...{ gpu: ['--enable-unsafe-webgpu', '--enable-features=Vulkan'], software: ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'], none: [] }[adapter],
      ...(hosts.length ? [`--host-resolver-rules=${hosts.map((host) => `MAP ${host} 127.0.0.1`).join(', ')}`] : []),
      '--disable-dev-shm-usage', // /dev/shm is 64 MB in a container
    ],
    // HOME: Chrome and fontconfig write there, and it may be missing or read-only.
    env: {
      ...process.env,
      HOME: profile,
      // Of the C locale it would make a language that is no language tag, en-US@posix.
      LC_ALL: 'en_US.UTF-8',
      LANGUAGE: 'en_US',
      LD_LIBRARY_PATH: [libraries, process.env.LD_LIBRARY_PATH].filter(Boolean).join(delimiter),
    },
  });
  const close = browser.close.bind(browser);
  browser.close = async () => {
    await close();
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
  };
  return browser;
}

const types = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript; charset=utf-8', '.mjs': 'text/javascript; charset=utf-8', '.wasm': 'application/wasm', '.json': 'application/json', '.css': 'text/css; charset=utf-8', '.svg': 'image/svg+xml', '.woff2': 'font/woff2' };

/** The names and addresses of this machine itself, with a port or without. */
const loopback = /^(localhost|127(\.\d{1,3}){3}|::1|\[::1\])(:\d+)?$/i;

/**
 * Serves directories on 127.0.0.1 (a secure context, which WebGPU wants), to requests that are for this machine by name: a page whose own name was made to lead
 * here (DNS rebinding) gets nothing. `hosts` are further names, and another `host` to bind is open to every name. `mounts` maps a URL prefix (`/goldens/`) to a
 * directory, whose index.html stands for itself; nothing outside is served, and byte ranges are honoured. `headers` go with every answer.
 * Resolves with `{ url, close }`.
 */
export async function serve(mounts, { port = 0, host = '127.0.0.1', hosts = [], headers: always = {} } = {}) {
  const meant = (name = '') => !loopback.test(host) || loopback.test(name) || hosts.includes(name.replace(/:\d+$/, ''));
  const server = createServer((request, response) => {
    respond(request, response).catch(() => response.writeHead(500).end());
  });
  async function respond(request, response) {
    if (!meant(request.headers.host)) return void response.writeHead(421, always).end();
    let path;
    try {
      path = decodeURIComponent(new URL(request.url, 'http://localhost').pathname);
    } catch {
      return void response.writeHead(400, always).end();
    }
    const prefix = Object.keys(mounts)
      .filter((candidate) => path.startsWith(candidate))
      .sort((a, b) => b.length - a.length)[0];
    const file = prefix && normalize(join(mounts[prefix], path.slice(prefix.length) || 'index.html'));
    const info = file?.startsWith(normalize(mounts[prefix]) + sep) && (await stat(file).catch(() => undefined));
    if (!info || !info.isFile()) return void response.writeHead(404, always).end();
    const headers = { ...always, 'content-type': types[extname(file)] ?? 'application/octet-stream', 'accept-ranges': 'bytes', 'cache-control': 'no-store' };
    const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '') ?? [];
    if (from === undefined) {
      response.writeHead(200, { ...headers, 'content-length': info.size });
      createReadStream(file).pipe(response);
      return;
    }
    const start = Number(from);
    const end = Math.min(to ? Number(to) : Infinity, info.size - 1);
    if (start > end) return void response.writeHead(416, { 'content-range': `bytes */${info.size}` }).end();
    response.writeHead(206, { ...headers, 'content-length': end - start + 1, 'content-range': `bytes ${start}-${end}/${info.size}` });
    createReadStream(file, { start, end }).pipe(response);
  }
  await new Promise((resolve, reject) => server.once('error', reject).listen(port, host, resolve));
  return {
    url: `http://${server.address().family === 'IPv6' ? `[${host}]` : host}:${server.address().port}`,
    close: () => new Promise((resolve) => server.close(resolve)),
  };
}
