import { randomBytes } from 'node:crypto';
import { access, link, mkdir, mkdtemp, open, rename, rm, rmdir, stat, writeFile, type FileHandle } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { BruitError } from '../engine/errors';

const REASONS: Record<string, string> = {
  ENOENT: 'there is no such file or folder',
  ENOTDIR: 'a part of the path is a file, not a folder',
  EISDIR: 'it is a folder, not a file',
  EEXIST: 'it exists already; remove it or choose another name',
  EACCES: 'no permission',
  EPERM: 'no permission',
  EROFS: 'the file system is read-only',
  ENOSPC: 'no space left on the device',
  EDQUOT: 'the disk quota is used up',
  EMFILE: 'too many open files',
  ENAMETOOLONG: 'the name is too long',
};

/** A {@link BruitError} (`io`) that says in words why `action` ("write", "read") failed on `path`. */
export function fileError(action: string, path: string, cause: unknown): BruitError {
  const code = (cause as NodeJS.ErrnoException).code ?? '';
  return new BruitError('io', `cannot ${action} ${path}: ${REASONS[code] ?? (cause instanceof Error ? cause.message : String(cause))}.`, { cause });
}

async function syncFolder(path: string): Promise<void> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(path, 'r');
    await handle.sync();
  } catch (error) {
    // Windows cannot open or sync a folder; the rename itself is journalled there.
    if (!['EISDIR', 'EPERM', 'EINVAL', 'EACCES'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
  } finally {
    await handle?.close();
  }
}

/**
 * Writes a file so that `path` is at every moment, power loss included, either what it was or complete: temporary name
 * in the same folder, fsync, rename, fsync of the folder. Missing folders are made. `bytes` may come in pieces.
 * With `overwrite: false` an existing file is an error and stays as it is.
 */
export async function writeFileAtomic(path: string, bytes: Uint8Array | string | Iterable<Uint8Array> | AsyncIterable<Uint8Array>, options: { overwrite?: boolean } = {}): Promise<void> {
  const folder = dirname(path);
  const temporary = join(folder, `.${basename(path)}.${process.pid}.${randomBytes(4).toString('hex')}.tmp`);
  try {
    await mkdir(folder, { recursive: true });
    const handle = await open(temporary, 'wx');
    try {
      await writeFile(handle, bytes);
      await handle.sync();
    } finally {
      await handle.close();
    }
    if (options.overwrite === false) await link(temporary, path); // rename would replace, link refuses
    else await rename(temporary, path);
    await syncFolder(folder);
  } catch (error) {
    throw error instanceof BruitError ? error : fileError('write', path, error);
  } finally {
    await rm(temporary, { force: true }).catch(() => {}); // the error above matters more than a left-over
  }
}

/** @throws BruitError `io` unless files can be written into `folder`, which need not exist yet; nothing is left there. */
export async function writableFolder(folder: string): Promise<void> {
  let nearest = resolve(folder);
  while (!(await exists(nearest)) && dirname(nearest) !== nearest) nearest = dirname(nearest);
  try {
    if (!(await stat(nearest)).isDirectory()) throw Object.assign(new Error(), { code: 'ENOTDIR' });
    // Rights alone do not tell: the root user has them all, on read-only and pseudo file systems too.
    await rmdir(await mkdtemp(join(nearest, '.bruit-')));
  } catch (error) {
    throw fileError('write to', folder, error);
  }
}

const exists = (path: string): Promise<boolean> => access(path).then(() => true, () => false);

/** Appends records as JSON lines in one write each call. NaN and infinities become `null`, as JSON has none. */
export async function appendJsonl(path: string, ...records: readonly object[]): Promise<void> {
  try {
    await mkdir(dirname(path), { recursive: true });
    const handle = await open(path, 'a+');
    try {
      // A run killed within a write leaves half a line: start a new one, so that only that record is lost.
      const { size } = await handle.stat();
      const last = size > 0 ? (await handle.read(Buffer.alloc(1), 0, 1, size - 1)).buffer[0] : 0x0a;
      await handle.appendFile((last === 0x0a ? '' : '\n') + records.map((r) => `${JSON.stringify(r)}\n`).join(''));
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw fileError('append to', path, error);
  }
}
