/** Entry under deno: `deno run suite.mjs GOLDENS [FILTER]` prints one JSON result a line. */
import { runBrowserTests } from './suite';

declare const Deno: { args: string[]; readFile: (path: string) => Promise<Uint8Array<ArrayBuffer>>; exit: (code: number) => never };

const [goldens, filter = ''] = Deno.args;
/** Node and Chrome run these, too, and other rows here have every kernel of theirs: two thirds of a minute less. */
const left = ['unet2d_cifar_tiny · three AdamW steps with EMA', 'pipeline_controlnet_tiny · runs', 'pipeline_xl_tiny · runs'];
await runBrowserTests(
  {
    report: (result) => console.log(JSON.stringify(result)),
    golden: async (path) => {
      const bytes = await Deno.readFile(`${goldens}/${path}`);
      return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
    },
  },
  filter,
  left,
);
console.log(JSON.stringify({ done: true }));
// wgpu's polling threads would keep the process.
Deno.exit(0);
