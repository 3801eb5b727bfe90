/** docs/tour.md: every snippet runs, and every experiment that it names is one of the page's. */
import { readFileSync } from 'node:fs';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createNodeGPU } from '../src/node/gpu';

const root = resolve(fileURLToPath(new URL('..', import.meta.url)));
const text = readFileSync(join(root, 'docs/tour.md'), 'utf8');
const parts = text.split(/^## /m).slice(1).map((part) => ({ title: part.split('\n')[0]!, code: /^```ts\n([^]*?)^```/m.exec(part)?.[1] }));
const scratch = join(root, 'out', `tour-${process.pid}`);

beforeAll(async () => {
  await mkdir(scratch, { recursive: true });
  // The snippets are written for a browser.
  Object.defineProperty(globalThis, 'navigator', { configurable: true, value: { gpu: createNodeGPU() } });
});
afterAll(async () => {
  Reflect.deleteProperty(globalThis, 'navigator');
  await rm(scratch, { recursive: true, force: true });
});

test('the tour has its ten parts', () => expect(parts.length).toBe(10));

test.each(parts.filter((part) => part.code).map((part, i) => ({ ...part, i })))('$title', async ({ code, i }) => {
  const file = join(scratch, `part${i}.ts`);
  await writeFile(file, code!.replace(/from 'bruit'/g, `from '${join(root, 'src/index.ts')}'`));
  await import(/* @vite-ignore */ pathToFileURL(file).href);
});

test('experiments exist in the page', () => {
  const page = readFileSync(join(root, 'web/tour.tsx'), 'utf8');
  const named = [...text.matchAll(/<!-- experiment: (\w+) -->/g)].map(([, name]) => name!);
  expect(named.length).toBeGreaterThan(8);
  for (const name of named) expect(page).toContain(`  ${name}: `);
});
