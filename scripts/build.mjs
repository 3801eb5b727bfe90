// Bundles with esbuild. `node scripts/build.mjs [TARGET…]` builds the named targets, or all.
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { gzipSync } from 'node:zlib';
import { glob } from './glob_plugin.mjs';
import { pure } from './pure_plugin.mjs';
import { samplingOnly } from './sampling_plugin.mjs';

export const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');

/** What Node alone needs, package.json calls optional; it stays outside of bundles. All other packages are inside. */
const nodeOnly = Object.keys(JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).optionalDependencies);

/**
 * What `dist/` is made of. The library is two entries, `bruit` and `bruit/node`, over shared files, so that a program that imports both has one
 * `Engine` and one `BruitError`. The namespace of ops and the parser of WGSL have files of their own: an application's bundler then drops them
 * where they are not used.
 */
const targets = {
  adapter: { entry: 'src/node/adapter.ts', out: 'dist/adapter.mjs', platform: 'node' },
  swiftshader: { entry: 'src/node/swiftshader.ts', out: 'dist/swiftshader.mjs', platform: 'node' },
  cli: { entry: 'cli/main.ts', out: 'dist/cli.mjs', platform: 'node', options: { packages: undefined, external: nodeOnly } },
  index: {
    entry: 'src/index.ts',
    out: 'dist/index.js',
    platform: 'browser',
    options: {
      entryPoints: Object.fromEntries(Object.entries({ index: 'src/index.ts', node: 'src/node/index.ts', ops: 'src/engine/ops/index.ts', wgsl_reflect: 'node_modules/wgsl_reflect/wgsl_reflect.module.js' }).map(([name, file]) => [name, join(root, file)])),
      outfile: undefined,
      outdir: join(root, 'dist'),
      splitting: true,
      chunkNames: 'chunks/[name]-[hash]',
      external: ['node:*', ...nodeOnly],
      plugins: [pure(join(root, 'src'))],
    },
  },
  sampling: { entry: 'src/sampling.ts', out: 'dist/sampling.js', platform: 'browser', options: { sourcemap: false, plugins: [samplingOnly(root)] } },
};

/** Most that the sampling bundle may weigh gzipped, in bytes. */
export const samplingLimit = 60 * 1000;

export const gzippedSize = (path) => gzipSync(readFileSync(path), { level: 9 }).length;

/** Writes under a temporary name and renames, so that a process that imports the file meanwhile never reads half of it. */
async function writeWhole(path, contents) {
  await mkdir(dirname(path), { recursive: true });
  const temporary = `${path}.${process.pid}.tmp`;
  await writeFile(temporary, contents);
  await rename(temporary, path);
}

/** Bundles one TypeScript entry into one ES module. Paths are relative to the repository root, or absolute. */
export async function bundle(entry, out, platform, options = {}) {
  const { build } = await import('esbuild');
  const result = await build({
    absWorkingDir: root,
    entryPoints: [resolve(root, entry)],
    outfile: resolve(root, out),
    bundle: true,
    write: false,
    format: 'esm',
    platform,
    target: platform === 'node' ? 'node20' : 'es2022',
    loader: { '.wgsl': 'text' },
    plugins: [glob()],
    sourcemap: 'linked',
    logLevel: 'warning',
    ...(platform === 'node' ? { packages: 'external' } : {}),
    ...options,
  });
  for (const file of result.outputFiles) await writeWhole(file.path, file.contents);
  if (options.splitting) {
    const chunks = join(options.outdir, 'chunks');
    const current = new Set(result.outputFiles.map((file) => file.path));
    for (const name of readdirSync(chunks)) if (!current.has(join(chunks, name)) && !name.endsWith('.tmp')) await rm(join(chunks, name));
  }
  return resolve(root, out);
}

/** Declarations of the library, with file extensions in their imports, which every `moduleResolution` follows. */
async function declarations() {
  const { default: ts } = await import('typescript');
  const { config } = ts.readConfigFile(join(root, 'tsconfig.json'), ts.sys.readFile);
  const { options } = ts.convertCompilerOptionsFromJson(config.compilerOptions, root);
  const source = join(root, 'src');
  const entries = ['index.ts', 'sampling.ts', 'node/index.ts', 'wgsl.d.ts', 'wgsl_reflect.d.ts'].map((file) => join(source, file));
  const program = ts.createProgram(entries, { ...options, noEmit: false, declaration: true, emitDeclarationOnly: true, rootDir: source, outDir: join(root, 'dist', 'types') });
  const files = new Map();
  const { diagnostics } = program.emit(undefined, (path, text) => files.set(path, text));
  if (diagnostics.length) throw new Error(ts.formatDiagnostics(diagnostics, { getCanonicalFileName: (name) => name, getCurrentDirectory: () => root, getNewLine: () => '\n' }));
  for (const [path, text] of files) {
    const extended = text.replace(/(from |import\()(['"])(\.[^'"]*)\2/g, (_, start, _quote, to) => `${start}'${to}${files.has(join(dirname(path), `${to}.d.ts`)) ? '' : '/index'}.js'`);
    await writeWhole(path, extended);
  }
  return join(root, 'dist', 'types', 'index.d.ts');
}

function newest(path) {
  const info = statSync(path);
  if (!info.isDirectory()) return info.mtimeMs;
  return readdirSync(path).reduce((time, name) => Math.max(time, newest(join(path, name))), info.mtimeMs);
}

/** Builds the named targets, `types` (the declarations) among them. */
export async function build(names = [...Object.keys(targets), 'types']) {
  const built = [];
  for (const name of names) {
    if (name === 'types') {
      built.push(await declarations());
      continue;
    }
    const target = targets[name];
    if (!target) throw new Error(`no build target "${name}": choose from ${Object.keys(targets).join(', ')}, types`);
    built.push(await bundle(target.entry, target.out, target.platform, target.options));
  }
  return built;
}

/**
 * Path of a target's output, built first if a source is newer than it. An installed package has no sources: there the
 * output is taken as it is.
 */
export async function ensureBuilt(name) {
  const { entry, out: file } = targets[name] ?? { entry: 'src/index.ts', out: 'dist/types/index.d.ts' };
  const out = join(root, file);
  if (!existsSync(join(root, entry))) return out;
  const sources = ['src', 'cli', 'shaders', 'scripts', 'package.json'].map((path) => join(root, path)).filter((path) => existsSync(path));
  if (!existsSync(out) || Math.max(...sources.map(newest)) > statSync(out).mtimeMs) await build([name]);
  return out;
}

/** Imports a target, built if need be. */
export async function load(name) {
  return import(pathToFileURL(await ensureBuilt(name)).href);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    const built = await build(process.argv.length > 2 ? process.argv.slice(2) : undefined);
    for (const path of built) {
      const gzipped = path.endsWith('sampling.js') ? gzippedSize(path) : undefined;
      console.log(`${relative(root, path)}  ${(statSync(path).size / 1024).toFixed(1)} kB${gzipped ? `, ${gzipped} bytes gzipped` : ''}`);
      if (gzipped > samplingLimit) throw new Error(`${relative(root, path)} is over its limit of ${samplingLimit} bytes gzipped`);
    }
  } catch (error) {
    if (!error.errors) console.error(error.message); // esbuild has printed its own
    process.exitCode = 1;
  }
}
