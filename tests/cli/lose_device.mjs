// For NODE_OPTIONS=--import: the first device of the process is destroyed behind its LOSE_AFTER'th submission.
import { globals } from 'webgpu';

const { prototype } = globals.GPUAdapter;
const { requestDevice } = prototype;
let left = Number(process.env.LOSE_AFTER);
prototype.requestDevice = async function (...args) {
  const device = await requestDevice.apply(this, args);
  const { queue } = device;
  const submit = queue.submit.bind(queue);
  queue.submit = (buffers) => {
    submit(buffers);
    if (--left === 0) device.destroy();
  };
  return device;
};
