// Verifies every case in a folder on one device:
//   node scripts/run.mjs [--adapter KIND] scripts/diffusers/verify_all.ts FOLDER
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { Engine } from '../../src/engine/device';
import { openFolder } from '../../src/node/case_folder';
import { createNodeGPU } from '../../src/node/gpu';
import { verifyCase } from '../../src/verify/verify';

const folder = process.argv[2]!;
const engine = await Engine.create({ gpu: createNodeGPU() });
let [passed, failed] = [0, 0];
for (const name of (await readdir(folder)).sort()) {
  const found = await openFolder(join(folder, name));
  try {
    const report = await verifyCase(engine, found);
    const miss = report.firstDivergence;
    const left = report.notRecomputed.map((t) => t.name);
    if (miss ?? left.length) throw new Error(miss ? `${miss.name} differs by ${miss.difference}, allowed ${miss.allowed}` : `nothing computes ${left.join(', ')}`);
    passed++;
  } catch (error) {
    failed++;
    console.log(`${name}: ${(error as Error).message}`);
  } finally {
    await found.close();
  }
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed ? 1 : 0;
