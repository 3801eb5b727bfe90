// An import map does not reach workers; a bundler would let this say 'bruit'.
import { DDPMPipeline, Engine, ImageOutput, urlFolder } from '../../dist/index.js';

addEventListener('message', async ({ data: options }) => {
  try {
    const engine = await Engine.create();
    const pipeline = await DDPMPipeline.fromFolder(engine, urlFolder(new URL('../../models/digits', import.meta.url).href));
    const sampler = await pipeline.createSampler(options);
    const output = await ImageOutput.create(engine, sampler.sampleView, sampler.sampleShape);
    await sampler.run();
    for (let index = 0; index < output.count; index++) {
      const image = await output.toImageData(index);
      postMessage({ image, index });
    }
    for (const each of [output, sampler, pipeline, engine]) each.destroy();
  } catch (error) {
    postMessage({ error: String(error) });
  }
});
