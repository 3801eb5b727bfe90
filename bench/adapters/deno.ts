/** Entry under deno, on wgpu: `deno run SCRIPT ROOT` prints the report as a line of JSON. */
import type { ModelFolder } from '../../src/io/folder';
import { bytesSource } from '../../src/io/source';
import { adapterImages } from './images';

declare const Deno: { args: string[]; readFile: (path: string) => Promise<Uint8Array<ArrayBuffer>>; stat: (path: string) => Promise<object>; exit: (code: number) => never };

const [root] = Deno.args;
const folder = (name: string): ModelFolder => ({
  name,
  has: (path) => Deno.stat(`${root}/${name}/${path}`).then(() => true, () => false),
  text: async (path) => new TextDecoder().decode(await Deno.readFile(`${root}/${name}/${path}`)),
  source: async (path) => bytesSource(await Deno.readFile(`${root}/${name}/${path}`), path),
});

console.log(JSON.stringify(await adapterImages(navigator.gpu, folder)));
// wgpu's polling threads would keep the process.
Deno.exit(0);
