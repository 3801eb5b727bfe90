// Five digits denoise on a canvas. The pixels go from the sampler's buffer to the canvas on the GPU; nothing is read back.
import { DDPMPipeline, Engine, ImageOutput, urlFolder } from 'bruit';

const engine = await Engine.create();
const pipeline = await DDPMPipeline.fromFolder(engine, urlFolder(new URL('../../models/digits', import.meta.url).href));
const sampler = await pipeline.createSampler({ labels: [0, 1, 2, 3, 4], steps: 6, scheduler: 'ddim', seed: 7 });
const output = await ImageOutput.create(engine, sampler.sampleView, sampler.sampleShape);

const context = document.querySelector('canvas').getContext('webgpu');
context.configure({ device: engine.device, format: 'rgba8unorm', usage: GPUTextureUsage.COPY_DST | GPUTextureUsage.RENDER_ATTACHMENT });

for (let step = 0; step <= sampler.stepCount; step++) {
  await new Promise(requestAnimationFrame);
  const encoder = engine.device.createCommandEncoder();
  if (step === 0) sampler.encodeStart(encoder);
  else sampler.encodeStep(encoder);
  output.encode(encoder);
  const texture = context.getCurrentTexture();
  for (let image = 0; image < output.count; image++) output.copyToTexture(encoder, texture, image, [image * output.width, 0]);
  engine.device.queue.submit([encoder.finish()]);
}
await engine.device.queue.onSubmittedWorkDone();
document.title = 'done';
