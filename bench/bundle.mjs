// npm run bench:bundle: bench/ours.mjs as one ES module for a page, bench/dist/ours.js.
import { relative } from 'node:path';
import { bundle, root } from '../scripts/build.mjs';

console.log(relative(root, await bundle('bench/ours.mjs', 'bench/dist/ours.js', 'browser', { sourcemap: false })));
