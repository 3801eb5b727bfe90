#!/usr/bin/env node
// Starts the command line under the adapter that --adapter (or BRUIT_ADAPTER) names: the Vulkan loader reads its
// environment when a process starts, so the real program runs in a second one.
import { existsSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');

/** In a checkout, the built file, rebuilt if sources changed; in an installed package, the one that it came with. */
async function built(name) {
  const builder = join(root, 'scripts', 'build.mjs');
  if (!existsSync(builder)) return join(root, 'dist', `${name}.mjs`);
  const { ensureBuilt } = await import(pathToFileURL(builder).href);
  return ensureBuilt(name);
}

/** Last value of --adapter, before `--`. */
function adapterArgument(args) {
  let value;
  for (const [index, arg] of args.entries()) {
    if (arg === '--') break;
    if (arg === '--adapter') value = args[index + 1];
    else if (arg.startsWith('--adapter=')) value = arg.slice('--adapter='.length);
  }
  return value;
}

/** Help and files need no adapter: they run in this process, without a driver being looked for. */
function needsAdapter(args) {
  const command = args.find((arg, index) => !arg.startsWith('-') && args[index - 1] !== '--adapter');
  return command !== undefined && !['help', 'inspect'].includes(command) && !args.some((arg) => ['-h', '--help', '-V', '--version'].includes(arg));
}

const args = process.argv.slice(2);
try {
  const { parseAdapterKind, reexecWithAdapter } = await import(pathToFileURL(await built('adapter')).href);
  const kind = parseAdapterKind(adapterArgument(args) ?? process.env.BRUIT_ADAPTER ?? 'auto');
  const cli = await built('cli');
  if (needsAdapter(args)) process.exitCode = await reexecWithAdapter(kind, cli, args);
  else await import(pathToFileURL(cli).href);
} catch (error) {
  // Installed with --omit=optional, as for browsers alone.
  const missing = error?.code === 'ERR_MODULE_NOT_FOUND' && /package '([^']+)'/.exec(error.message)?.[1];
  if (missing) console.error(`bruit: the package ${missing} is not installed: the command line needs bruit's optional dependencies (npm install --include=optional)`);
  // A failed build (error.errors) has been printed by esbuild.
  else if (!error?.errors) console.error(error?.name === 'BruitError' ? `bruit: ${error.message}` : error);
  process.exitCode = 2;
}
