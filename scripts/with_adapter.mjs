// Runs any command with the environment of a WebGPU adapter:
//   node scripts/with_adapter.mjs KIND -- COMMAND ARGS…
// KIND is auto, gpu, software, swiftshader or lavapipe; the variable BRUIT_ADAPTER overrides it.
import { load } from './build.mjs';

const separator = process.argv.indexOf('--');
const [kind] = process.argv.slice(2, separator);
const [command, ...args] = separator < 0 ? [] : process.argv.slice(separator + 1);
if (!kind || !command) {
  console.error('usage: node scripts/with_adapter.mjs KIND -- COMMAND ARGS…');
  process.exit(2);
}
const { parseAdapterKind, runWithAdapter } = await load('adapter');
try {
  process.exitCode = await runWithAdapter(parseAdapterKind(process.env.BRUIT_ADAPTER ?? kind), command, args);
} catch (error) {
  console.error(error.name === 'BruitError' ? error.message : error);
  process.exitCode = 2;
}
