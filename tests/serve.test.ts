/** The playground's server: loopback alone, nothing outside its folder, a content security policy with every answer. */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { connect } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { serve } from '../scripts/chrome.mjs';
import { contentSecurityPolicy } from '../scripts/web.mjs';

let folder: string;
let server: { url: string; close: () => Promise<void> };
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'bruit-serve-'));
  await mkdir(join(folder, 'site'));
  await mkdir(join(folder, 'site-secret'));
  await writeFile(join(folder, 'site', 'index.html'), 'the page');
  await writeFile(join(folder, 'secret.txt'), 'secret');
  await writeFile(join(folder, 'site-secret', 'a.txt'), 'secret');
  server = await serve({ '/play/': join(folder, 'site') }, { headers: { 'content-security-policy': contentSecurityPolicy } });
});
afterAll(async () => {
  await server.close();
  await rm(folder, { recursive: true });
});

/** A request whose path nobody tidies up on the way. */
const get = (path: string, host?: string, at = server.url) =>
  new Promise<{ status: number; body: string; policy: string | undefined }>((resolve, reject) => {
    const { port } = new URL(at);
    request({ host: '127.0.0.1', port, path, ...(host !== undefined && { headers: { host } }) }, (response) => {
      let body = '';
      response.on('data', (part: Buffer) => (body += part.toString()));
      response.on('end', () => resolve({ status: response.statusCode!, body, policy: response.headers['content-security-policy'] as string | undefined }));
    })
      .on('error', reject)
      .end();
  });

test('the folder is served, with the policy', async () => {
  expect(await get('/play/')).toEqual({ status: 200, body: 'the page', policy: contentSecurityPolicy });
  expect(contentSecurityPolicy).toMatch(/default-src 'none'/);
  expect(contentSecurityPolicy).not.toMatch(/unsafe-inline|'unsafe-eval'|script-src[^;]*(https?:|blob:|data:|\*)/);
});

test.each(['/play/../secret.txt', '/play/%2e%2e/secret.txt', '/play/..%2fsecret.txt', '/play/%2e%2e%2fsite-secret/a.txt', '/play/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd', '/play//etc/passwd', '/play/%00', '/play/%', '/secret.txt', '/', '/play/site'])('%s is not there', async (path) => {
  const { status, body, policy } = await get(path);
  expect(status).toBe(path.endsWith('%') ? 400 : 404);
  expect(body).toBe('');
  expect(policy).toBe(contentSecurityPolicy);
});

test.each(['localhost', 'LOCALHOST:80', '127.0.0.1:8080', '127.1.2.3', '[::1]:8080'])('asked as %s, it answers', async (host) => expect((await get('/play/', host)).status).toBe(200));

test.each(['elsewhere.test', 'elsewhere.test:8080', 'localhost.elsewhere.test', '127.0.0.1.elsewhere.test', 'elsewhere.test@127.0.0.1', '10.0.0.1'])('asked as "%s" (DNS rebinding), it does not', async (host) => {
  const { status, body, policy } = await get('/play/', host);
  expect(status).toBe(421);
  expect(body).toBe('');
  expect(policy).toBe(contentSecurityPolicy);
});

test('other names must be given, or another address be bound', async () => {
  for (const [options, elsewhere] of [[{ hosts: ['elsewhere.test'] }, 200], [{ host: '0.0.0.0' }, 200], [{}, 421]] as const) {
    const other = await serve({ '/': join(folder, 'site') }, options);
    expect((await get('/', 'elsewhere.test:80', other.url)).status).toBe(elsewhere);
    await other.close();
  }
});

test('other machines cannot connect', async () => {
  const own = Object.values(networkInterfaces()).flat().find((each) => each && !each.internal && each.family === 'IPv4');
  if (!own) return;
  const connected = await new Promise<boolean>((resolve) => {
    const socket = connect({ host: own.address, port: Number(new URL(server.url).port), timeout: 2000 }, () => resolve(true));
    socket.on('error', () => resolve(false)).on('timeout', () => resolve(false));
  });
  expect(connected).toBe(false);
});
