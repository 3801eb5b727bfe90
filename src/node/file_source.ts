import { open } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { BruitError } from '../engine/errors';
import { openSafetensors, openSharded, type TensorStore } from '../io/safetensors';
import { checkRange, type ByteSource } from '../io/source';
import { fileError } from './files';

/** Node refuses single reads of 2 GiB and more. */
const LARGEST_READ = 2 ** 30;

/**
 * A file on disk, held open until `close()`.
 * @throws BruitError `io` if the path cannot be opened or is not a file.
 */
export async function fileSource(path: string): Promise<ByteSource & { close(): Promise<void> }> {
  const handle = await open(path, 'r').catch((cause: unknown) => {
    throw fileError('open', path, cause);
  });
  const stat = await handle.stat();
  if (!stat.isFile()) {
    await handle.close();
    throw new BruitError('io', `cannot open ${path}: it is ${stat.isDirectory() ? 'a folder' : 'not a regular file'}`);
  }
  const source = {
    name: path,
    size: stat.size,
    async read(offset: number, length: number) {
      checkRange(source, offset, length);
      const bytes = new Uint8Array(length);
      for (let done = 0; done < length; ) {
        const { bytesRead } = await handle.read(bytes, done, Math.min(length - done, LARGEST_READ), offset + done).catch((cause: unknown) => {
          throw fileError('read', path, cause);
        });
        if (bytesRead === 0) throw new BruitError('io', `${path}: ended at byte ${offset + done}, though it had ${stat.size} bytes when it was opened. Is it being rewritten?`);
        done += bytesRead;
      }
      return bytes;
    },
    close: () => handle.close(),
  };
  return source;
}

/**
 * Opens a `.safetensors` file, or sharded weights by their `.index.json`; call `close()` on the result when done.
 * @throws BruitError `io` or `safetensors`.
 */
export async function openTensorFile(path: string): Promise<TensorStore> {
  const source = await fileSource(path);
  if (!basename(path).endsWith('.json')) {
    try {
      return await openSafetensors(source);
    } catch (error) {
      await source.close();
      throw error;
    }
  }
  try {
    return await openSharded(source, (file) => fileSource(join(dirname(path), file)));
  } finally {
    await source.close();
  }
}
