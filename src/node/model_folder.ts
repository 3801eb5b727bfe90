import { urlFolder, type ModelFolder } from '../io/folder';
import { directory } from './directory';

/** A model folder by what a user calls it: a path, or an http(s) address. */
export const openModel = (name: string): ModelFolder => (/^https?:\/\//.test(name) ? urlFolder(name) : directory(name));
