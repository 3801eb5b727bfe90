/** The origin's private file system. */
import { BruitError } from '../../src/engine/errors';

const root = async (): Promise<FileSystemDirectoryHandle> => {
  try {
    return await (await navigator.storage.getDirectory()).getDirectoryHandle('train', { create: true });
  } catch (cause) {
    throw new BruitError('io', 'this browser keeps no files for the page here (a private window?): the run lasts as long as the page does', { cause });
  }
};

/** Contents change as a whole when everything is written: whatever happens before, the file of earlier stays. */
export async function writeStored(name: string, data: Uint8Array): Promise<void> {
  const handle = await (await root()).getFileHandle(name, { create: true });
  const writable = await handle.createWritable();
  await writable.write(data as Uint8Array<ArrayBuffer>);
  await writable.close();
}

export async function readStored(name: string): Promise<Uint8Array | undefined> {
  try {
    const file = await (await (await root()).getFileHandle(name)).getFile();
    return file.size ? new Uint8Array(await file.arrayBuffer()) : undefined;
  } catch {
    return undefined;
  }
}

export async function removeStored(name: string): Promise<void> {
  await (await root()).removeEntry(name).catch(() => undefined);
}
