// Writes digits as PNG files: node sample.js FOLDER
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DDPMPipeline, encodePng, Engine, imageGrid } from 'bruit';
import { adapterVariable, createNodeGPU, directory, packageRoot, reexecWithAdapter, writePngFolder } from 'bruit/node';

// The Vulkan loader reads its environment when a process starts: this one starts again under the adapter that it finds.
if (!process.env[adapterVariable]) process.exit(await reexecWithAdapter('auto', import.meta.filename, process.argv.slice(2)));

const [folder = 'digits'] = process.argv.slice(2);
const engine = await Engine.create({ gpu: createNodeGPU() });
const pipeline = await DDPMPipeline.fromFolder(engine, directory(join(packageRoot(), 'models', 'digits')));
const { images, shape } = await pipeline.generate({ labels: [3, 1, 4, 1, 5], steps: 6, scheduler: 'ddim', seed: 7 });
await mkdir(folder, { recursive: true });
const files = await writePngFolder(folder, { data: images, shape });
await writeFile(join(folder, 'grid.png'), encodePng(imageGrid({ data: images, shape }, { columns: 5 })));
console.log(`${files.length} images and a grid in ${folder}`);
pipeline.destroy();
engine.destroy();
