import { readdirSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';

const call = /import\.meta\.glob(?:<[^()]*>)?\(\s*'([^'*]*)\*(\.\w+)',\s*\{ eager: true \}\s*\)/g;

/** esbuild plugin for Vite's `import.meta.glob('DIR/*.EXT', { eager: true })`: one namespace import a file, sorted by name. */
export function glob() {
  return {
    name: 'glob',
    setup(build) {
      build.onLoad({ filter: /[\\/](cli|bench|tests)[\\/].*\.ts$/ }, async ({ path }) => {
        const source = await readFile(path, 'utf8');
        if (!source.includes('import.meta.glob')) return null;
        const imports = [];
        const contents = source.replace(call, (_, prefix, extension) => {
          const files = readdirSync(join(dirname(path), prefix)).filter((name) => name.endsWith(extension)).sort();
          const entries = files.map((name) => {
            const variable = `glob${imports.length}`;
            imports.push(`import * as ${variable} from ${JSON.stringify(`${prefix}${name}`)};`);
            return `${JSON.stringify(`${prefix}${name}`)}: ${variable}`;
          });
          return `({ ${entries.join(', ')} })`;
        });
        return { contents: `${imports.join('\n')}\n${contents}`, loader: 'ts' };
      });
    },
  };
}
