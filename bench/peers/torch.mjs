/** webgpu-torch: what of the race it has, plain matrix products. Its convolution takes no batch and no stride, and it has neither norms nor softmax. */
import * as torch from 'webgpu-torch';

/** Row-major numbers as nested arrays, which is what `tensor` takes. */
const nested = ({ shape: [rows, columns], data }) => Array.from({ length: rows }, (_, i) => Array.from(data.subarray(i * columns, (i + 1) * columns)));

export async function setup() {
  // It keeps its device to itself.
  let device;
  const { requestDevice } = GPUAdapter.prototype;
  GPUAdapter.prototype.requestDevice = async function (...args) {
    return (device = await requestDevice.apply(this, args));
  };
  try {
    if (!(await torch.initWebGPUAsync())) throw new Error('webgpu-torch found no WebGPU');
  } finally {
    GPUAdapter.prototype.requestDevice = requestDevice;
  }
  return {
    version: VERSION,
    matmul({ inputs: { a, b } }) {
      if (a.shape.length > 2) return undefined;
      const [left, right] = [torch.tensor(nested(a)), torch.tensor(nested(b))];
      let last;
      return {
        async run(k) {
          for (let i = 0; i < k; i++) last = torch.mm(left, right);
          await device.queue.onSubmittedWorkDone();
        },
        read: async () => Float32Array.from((await last.toArrayAsync()).flat()),
      };
    },
  };
}
