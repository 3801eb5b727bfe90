/** Entry in Node, on Dawn: prints the report as a line of JSON. */
import { createNodeGPU } from '../../src/node/gpu';
import { directory } from '../../src/node/directory';
import { adapterImages } from './images';

console.log(JSON.stringify(await adapterImages(createNodeGPU(), directory)));
process.exit(0);
