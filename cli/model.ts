import type { ModelFolder } from '../src/io/folder';
import { openModel } from '../src/node/model_folder';
import { Progress } from '../src/node/progress';
import { showBytes } from './format';

/** Opens a model; what is fetched shows its size and how far it is. */
export function openNamedModel(name: string, { json = false } = {}): ModelFolder {
  let progress: { readonly file: string; readonly bar: Progress } | undefined;
  return openModel(name, {
    onFetch(file, done, bytes) {
      // Configs come and go.
      if (bytes < 2 ** 20) return;
      if (progress?.file !== file) {
        process.stderr.write(`${file} of ${name}: ${showBytes(bytes)}${done > 0 ? `, ${showBytes(done)} of it here already` : ''}\n`);
        progress = { file, bar: new Progress({ total: bytes, label: 'fetch', unit: 'B', start: done, json }) };
      }
      progress.bar.update(done);
    },
  });
}
