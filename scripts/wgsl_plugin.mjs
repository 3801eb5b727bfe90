import { readFile } from 'node:fs/promises';

/** Vite plugin: `import source from './x.wgsl'` gives the file's text, as esbuild's `text` loader does. */
export function wgsl() {
  return {
    name: 'wgsl',
    enforce: 'pre',
    async load(id) {
      if (!id.endsWith('.wgsl')) return null;
      return { code: `export default ${JSON.stringify(await readFile(id, 'utf8'))};`, map: null };
    },
  };
}
