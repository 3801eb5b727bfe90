import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { chmod, lstat, mkdir, mkdtemp, rename, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { BruitError } from '../engine/errors';

const require = createRequire(import.meta.url);

/** Directory of an installed npm package: its resolved entry, cut after `node_modules/NAME`. */
export function packageDirectory(name: string): string {
  const entry = require.resolve(name);
  const marker = join('node_modules', ...name.split('/')) + sep;
  const at = entry.lastIndexOf(marker);
  return at < 0 ? dirname(entry) : entry.slice(0, at + marker.length - 1);
}

/** This package's own directory: the nearest one above the running file whose package.json says so. */
export function packageRoot(): string {
  for (let dir = dirname(fileURLToPath(import.meta.url)); ; dir = dirname(dir)) {
    const file = join(dir, 'package.json');
    if (existsSync(file) && (require(file) as { name?: string }).name === 'bruit') return dir;
    if (dir === dirname(dir)) throw new BruitError('io', 'the files of the package bruit were not found beside the running program');
  }
}

/** Version of an installed npm package, from its package.json. */
export function packageVersion(name: string): string {
  return (require(join(packageDirectory(name), 'package.json')) as { version: string }).version;
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

/**
 * Directories to cache in, best first: beside the packages that the content came from, so that removing `node_modules`
 * removes it; else, for a read-only installation, the temporary directory, by user id so that users do not meet.
 */
function cacheRoots(): string[] {
  const modules = packageDirectory('webgpu').replace(/[\\/]webgpu$/, '');
  return [join(modules, '.cache', 'bruit'), join(tmpdir(), `bruit-${process.getuid?.() ?? 'user'}`)];
}

/** False for a directory in the shared temporary directory that another user made: libraries are loaded from here. */
async function isTrusted(root: string): Promise<boolean> {
  if (!root.startsWith(tmpdir()) || !process.getuid) return true;
  const info = await lstat(root).catch(() => undefined);
  return !info || (info.isDirectory() && (info.uid === process.getuid() || info.uid === 0));
}

/**
 * Path of the cached directory `name`, filled by `fill(directory)` if it is not there yet. It is filled under a
 * temporary name and renamed, so a directory that exists is complete even if processes race or are killed. `name`
 * should carry the version of what it holds.
 */
export async function cachedDirectory(name: string, fill: (directory: string) => Promise<void>): Promise<string> {
  const roots: string[] = [];
  for (const root of cacheRoots()) if (await isTrusted(root)) roots.push(root);
  for (const root of roots) {
    if (await exists(join(root, name))) return join(root, name);
  }
  for (const root of roots) {
    let temporary: string;
    try {
      await mkdir(root, { recursive: true, mode: 0o755 });
      temporary = await mkdtemp(join(root, `.${name}-`));
    } catch {
      continue; // read-only: the next root, or the error below
    }
    const target = join(root, name);
    try {
      await fill(temporary);
      await chmod(temporary, 0o755); // mkdtemp made it private; an installation by root serves other users too
      await rename(temporary, target);
    } catch (error) {
      await rm(temporary, { recursive: true, force: true });
      // Another process finished first: rename onto a non-empty directory fails, and its copy is as good as ours.
      if (!(await exists(target))) throw error;
    }
    return target;
  }
  throw new BruitError('io', `no directory to cache ${name} in: ${cacheRoots().join(' and ')} are not writable or another user's`);
}
