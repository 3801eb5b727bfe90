// Three planes of a three.js scene wear digits that bruit samples on the renderer's own device: one texture each, filled on the GPU.
import { DDPMPipeline, Engine, ImageOutput, urlFolder } from 'bruit';
import * as THREE from 'three/webgpu';

const canvas = document.querySelector('canvas');
const renderer = new THREE.WebGPURenderer({ canvas });
await renderer.init();
renderer.setSize(canvas.width, canvas.height, false);
renderer.outputColorSpace = THREE.LinearSRGBColorSpace; // the digits' bytes as they are

const engine = await Engine.create({ device: renderer.backend.device }); // used as it is, never destroyed by bruit
const pipeline = await DDPMPipeline.fromFolder(engine, urlFolder(new URL('../../models/digits', import.meta.url).href));
const sampler = await pipeline.createSampler({ labels: [3, 5, 8], steps: 6, scheduler: 'ddim', seed: 7 });
const output = await ImageOutput.create(engine, sampler.sampleView, sampler.sampleShape);

const scene = new THREE.Scene();
const camera = new THREE.OrthographicCamera(-1.5, 1.5, 0.5, -0.5, 0, 1);
const textures = [0, 1, 2].map(() => output.createTexture());
textures.forEach((texture, i) => {
  const map = new THREE.ExternalTexture(texture);
  map.magFilter = THREE.NearestFilter;
  map.flipY = false;
  const plane = new THREE.Mesh(new THREE.PlaneGeometry(1, 1), new THREE.MeshBasicNodeMaterial({ map }));
  plane.position.x = i - 1;
  // A texture's first row is an image's top row; three.js puts it at the bottom.
  const { uv } = plane.geometry.attributes;
  for (let v = 0; v < uv.count; v++) uv.setY(v, 1 - uv.getY(v));
  scene.add(plane);
});

for (let step = 0; step <= sampler.stepCount; step++) {
  await new Promise(requestAnimationFrame);
  const encoder = engine.device.createCommandEncoder();
  if (step === 0) sampler.encodeStart(encoder);
  else sampler.encodeStep(encoder);
  output.encode(encoder);
  textures.forEach((texture, i) => output.copyToTexture(encoder, texture, i));
  engine.device.queue.submit([encoder.finish()]);
  renderer.render(scene, camera);
}
await engine.device.queue.onSubmittedWorkDone();
document.title = 'done';
