// Runs a TypeScript file of the repository in Node with a WebGPU adapter:
//   node scripts/run.mjs [--adapter KIND] FILE.ts ARGS…
// KIND defaults to the variable BRUIT_ADAPTER, then auto.
import { join, relative, resolve } from 'node:path';
import { bundle, load, root } from './build.mjs';

const args = process.argv.slice(2);
let kind = process.env.BRUIT_ADAPTER ?? 'auto';
if (args[0] === '--adapter') [, kind] = args.splice(0, 2);
const [file, ...rest] = args;
if (!file || !kind) {
  console.error('usage: node scripts/run.mjs [--adapter KIND] FILE.ts ARGS…');
  process.exit(2);
}
const entry = resolve(file);
// In node_modules, so that packages resolve from the output; by path, so that two files of one name do not meet.
const name = relative(root, entry).replace(/[^\w.-]+/g, '_').replace(/\.ts$/, '.mjs');
const { parseAdapterKind, reexecWithAdapter } = await load('adapter');
try {
  const script = await bundle(entry, join(root, 'node_modules', '.cache', 'bruit', 'run', name), 'node', { sourcemap: 'inline' });
  process.exitCode = await reexecWithAdapter(parseAdapterKind(kind), script, rest);
} catch (error) {
  console.error(error.name === 'BruitError' ? error.message : error);
  process.exitCode = 2;
}
