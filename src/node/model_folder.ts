import type { ModelFolder } from '../io/folder';
import { directory } from './directory';
import { hubFolder, remoteFolder, type RemoteFolderOptions } from './remote_folder';

/** A model folder by what a user calls it: a path, an http(s) address, or `hf:OWNER/NAME[@REVISION][/SUBFOLDER]`. */
export function openModel(name: string, options: RemoteFolderOptions = {}): ModelFolder {
  if (name.startsWith('hf:')) return hubFolder(name, options);
  return /^https?:\/\//.test(name) ? remoteFolder(name, options) : directory(name);
}
