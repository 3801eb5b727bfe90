/** The package as npm packs it, installed into an empty folder without network: in Node, through esbuild and Vite, as bare modules in a page, and its types. */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { copyFile, mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { build } from 'esbuild';
import ts from 'typescript';
import { build as viteBuild } from 'vite';
import { beforeAll, describe, expect, test } from 'vitest';
import { optionalDependencies, version } from '../package.json';
import { ensureBuilt, root } from '../scripts/build.mjs';
import { launchChrome, serve } from '../scripts/chrome.mjs';
import { temporary } from './cli/bruit';

const execute = promisify(execFile);
const npm = (cwd: string, ...args: string[]) => execute('npm', [...args, '--no-audit', '--no-fund', '--no-update-notifier'], { cwd });

/** Images of two digits in [0,1]: what every way of loading the package must give. */
const sample = (library: string, folder: string): string => `
  const engine = await Engine.create(${library});
  const pipeline = await DDPMPipeline.fromFolder(engine, ${folder});
  const { images, shape } = await pipeline.generate({ labels: [3, 8], steps: 2, scheduler: 'ddim', seed: 5 });
  pipeline.destroy();
  engine.destroy();
  const numbers = { shape: [...shape], ink: images.reduce((a, b) => a + b, 0) };`;

let folder: string;
/** The installed package. */
let installed: string;

beforeAll(async () => {
  for (const target of ['adapter', 'swiftshader', 'cli', 'index', 'sampling', 'types']) await ensureBuilt(target);
  folder = await temporary();
  await npm(root, 'pack', '--ignore-scripts', '--pack-destination', folder);
  await writeFile(join(folder, 'package.json'), JSON.stringify({ private: true, type: 'module' }));
  await npm(folder, 'install', '--offline', '--omit=optional', '--omit=peer', `./bruit-${version}.tgz`);
  installed = join(folder, 'node_modules', 'bruit');
});

/** A package of this checkout, for the program in `folder`. */
async function link(name: string): Promise<void> {
  const path = join(folder, 'node_modules', name);
  await mkdir(dirname(path), { recursive: true });
  if (!existsSync(path)) await symlink(join(root, 'node_modules', name), path);
}

test('it has no dependency but optional ones, and files of users only', async () => {
  expect((await readdir(join(folder, 'node_modules'))).filter((name) => !name.startsWith('.'))).toEqual(['bruit']);
  expect((await readdir(installed)).sort()).toEqual(['LICENSE', 'README.md', 'bin', 'dist', 'models', 'package.json', 'recipes', 'shaders']);
  const without = await execute(process.execPath, [join(installed, 'bin', 'bruit.mjs'), 'inspect', 'x']).catch((error: { stderr: string; code: number }) => error);
  expect(without).toMatchObject({ code: 2, stderr: expect.stringMatching(/^bruit: the package [\w-]+ is not installed: the command line needs bruit's optional dependencies .*\n$/) });
});

describe('types', () => {
  test.each(['Bundler', 'NodeNext'] as const)('moduleResolution %s', async (resolution) => {
    for (const name of ['@webgpu/types', '@types/node', 'undici-types']) await link(name);
    const file = join(folder, `consumer-${resolution}.ts`);
    await writeFile(
      file,
      `import { DDPMPipeline, Engine, Graph, ops, compile, BruitError, type GeneratedImages } from 'bruit';
import { directory, reexecWithAdapter } from 'bruit/node';
import { DDPMPipeline as Small } from 'bruit/sampling';
const graph = new Graph();
const x: import('bruit').Tensor = ops.silu(graph.input('x', [2, 3]));
export async function main(device: GPUDevice): Promise<GeneratedImages> {
  const engine = await Engine.create({ device });
  (await compile(engine, graph, { outputs: [x] })).run();
  const pipeline: DDPMPipeline = await DDPMPipeline.fromFolder(engine, directory('x'));
  if (Math.random() > 2) throw new BruitError('input', String([Small, reexecWithAdapter]));
  // @ts-expect-error steps is a number
  await pipeline.generate({ steps: '3' });
  return pipeline.generate({ steps: 3 });
}
`,
    );
    const node = resolution === 'NodeNext';
    const program = ts.createProgram([file], {
      strict: true,
      noEmit: true,
      target: ts.ScriptTarget.ES2022,
      lib: ['lib.es2023.d.ts', 'lib.dom.d.ts'],
      module: node ? ts.ModuleKind.NodeNext : ts.ModuleKind.ESNext,
      moduleResolution: node ? ts.ModuleResolutionKind.NodeNext : ts.ModuleResolutionKind.Bundler,
      types: ['@webgpu/types', 'node'],
      typeRoots: [join(folder, 'node_modules'), join(folder, 'node_modules', '@types')],
    });
    const errors = ts.getPreEmitDiagnostics(program).filter((d) => !d.file || d.file.fileName.includes('bruit') || d.file.fileName === file);
    expect(errors.map((d) => ts.flattenDiagnosticMessageText(d.messageText, '\n'))).toEqual([]);
    const library = program.getSourceFiles().filter(({ fileName }) => fileName.includes('/bruit/dist/types/'));
    expect(library.length).toBeGreaterThan(20);
  });
});

test('a bundler takes it, and only what is used of it', async () => {
  const bundle = async (code: string) => {
    const result = await build({ stdin: { contents: code, resolveDir: folder }, bundle: true, write: false, minify: true, format: 'esm', platform: 'browser', logLevel: 'silent' });
    return result.outputFiles[0]!.contents.length;
  };
  const whole = await bundle("import * as bruit from 'bruit'; globalThis.bruit = bruit;");
  const reader = await bundle("import { openSafetensors, bytesSource } from 'bruit'; globalThis.open = (b) => openSafetensors(bytesSource(b));");
  const process = await bundle("import { DiffusionProcess } from 'bruit'; console.log(DiffusionProcess);");
  expect(reader).toBeLessThan(whole / 20);
  expect(process).toBeLessThan(whole / 20);
  const shader = (await execute(globalThis.process.execPath, ['--input-type=module', '-e', "console.log(import.meta.resolve('bruit/shaders/lib/index.wgsl'))"], { cwd: folder })).stdout.trim();
  expect(await readFile(new URL(shader), 'utf8')).toContain('fn flat_workgroup');
});

test('Node, and pages that load it bare or bundled, draw the same images', async () => {
  for (const name of Object.keys(optionalDependencies)) await link(name);
  await writeFile(
    join(folder, 'node.js'),
    `import { DDPMPipeline, Engine } from 'bruit';
import { adapterVariable, createNodeGPU, directory, reexecWithAdapter } from 'bruit/node';
if (!process.env[adapterVariable]) process.exit(await reexecWithAdapter('software', import.meta.filename, []));
${sample('{ gpu: createNodeGPU() }', "directory('node_modules/bruit/models/digits')")}
console.log(JSON.stringify(numbers));`,
  );
  const environment = { ...process.env };
  for (const name of ['BRUIT_ADAPTER_ACTIVE', 'VK_ICD_FILENAMES', 'VK_DRIVER_FILES']) delete environment[name];
  const { stdout } = await execute(process.execPath, ['node.js'], { cwd: folder, env: environment });
  const expected = JSON.parse(stdout) as { shape: number[]; ink: number };
  expect(expected.shape).toEqual([2, 1, 28, 28]);
  expect(expected.ink).toBeGreaterThan(50);

  const program = (from: string) => `import { DDPMPipeline, Engine, urlFolder } from '${from}';
${sample('', "urlFolder(new URL('node_modules/bruit/models/digits', location.href).href)")}
globalThis.result = numbers;`;
  await writeFile(join(folder, 'bare.html'), `<!doctype html><script type="module">${program('./node_modules/bruit/dist/index.js')}</script>`);
  await build({ stdin: { contents: program('bruit'), resolveDir: folder }, bundle: true, outfile: join(folder, 'bundled.js'), format: 'esm', minify: true, logLevel: 'silent' });
  await writeFile(join(folder, 'bundled.html'), '<!doctype html><script type="module" src="bundled.js"></script>');
  const pages = ['bare.html', 'bundled.html'];

  await mkdir(join(folder, 'vite'));
  await writeFile(join(folder, 'vite', 'main.js'), program('bruit'));
  await writeFile(join(folder, 'vite', 'index.html'), '<!doctype html><script type="module" src="main.js"></script>');
  await viteBuild({ root: join(folder, 'vite'), configFile: false, base: '/dist/', build: { outDir: join(folder, 'dist') }, logLevel: 'silent' });
  await copyFile(join(folder, 'dist', 'index.html'), join(folder, 'vite.html'));
  pages.push('vite.html');

  const server = await serve({ '/': folder });
  const browser = await launchChrome();
  try {
    for (const name of pages) {
      const page = await browser.newPage();
      const broken = new Promise<never>((_, reject) => page.on('pageerror', (error) => reject(error as Error)));
      await page.goto(`${server.url}/${name}`);
      await Promise.race([broken, page.waitForFunction('globalThis.result !== undefined', { timeout: 60_000 })]);
      const actual = (await page.evaluate('globalThis.result')) as typeof expected;
      expect(actual.shape).toEqual(expected.shape);
      expect(Math.abs(actual.ink / expected.ink - 1), name).toBeLessThan(1e-5);
      await page.close();
    }
  } finally {
    await browser.close();
    await server.close();
  }
});
