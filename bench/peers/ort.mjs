/**
 * onnxruntime-web on its WebGPU execution provider, [N,C,H,W]. Models are ONNX graphs written here in memory; inputs and outputs stay on the GPU.
 * It has no training.
 */
import { onnx } from 'onnx-proto';
import * as ort from 'onnxruntime-web/webgpu';
import { raceUnet, unet2d } from '../reference.mjs';

ort.env.wasm.wasmPaths = '/peers/onnxruntime-web/dist/';
ort.env.wasm.numThreads = 1;
ort.env.logLevel = 'error';

const FLOAT = 1;
const INT64 = 7;

/** An ONNX graph in the making: ops append nodes and give back value names. */
class Model {
  nodes = [];
  initializers = [];
  inputs = [];
  shapes = new Map();

  info = (name, shape) => ({ name, type: { tensorType: { elemType: FLOAT, shape: { dim: shape.map((d) => ({ dimValue: d })) } } } });

  input(name, shape) {
    this.inputs.push(this.info(name, shape));
    this.shapes.set(name, shape);
    return name;
  }

  weight(shape, data, name = `w${this.initializers.length}`) {
    this.initializers.push({ name, dims: shape, dataType: FLOAT, rawData: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) });
    this.shapes.set(name, shape);
    return name;
  }

  integers(values) {
    const name = `i${this.initializers.length}`;
    this.initializers.push({ name, dims: [values.length], dataType: INT64, rawData: new Uint8Array(BigInt64Array.from(values, BigInt).buffer) });
    return name;
  }

  op(opType, inputs, shape, attributes = {}, domain = '') {
    const name = `v${this.nodes.length}`;
    const attribute = Object.entries(attributes).map(([key, value]) => {
      if (Array.isArray(value)) return { name: key, type: 7, ints: value };
      if (typeof value === 'string') return { name: key, type: 3, s: new TextEncoder().encode(value) };
      return value instanceof Number ? { name: key, type: 1, f: Number(value) } : { name: key, type: 2, i: value };
    });
    this.nodes.push({ opType, input: inputs, output: [name], attribute, domain, name });
    this.shapes.set(name, shape);
    return name;
  }

  bytes(output) {
    return onnx.ModelProto.encode({
      irVersion: 9,
      opsetImport: [{ domain: '', version: 19 }, { domain: 'com.microsoft', version: 1 }],
      graph: { name: 'row', node: this.nodes, initializer: this.initializers, input: this.inputs, output: [this.info(output, this.shapes.get(output))] },
    }).finish();
  }
}

/** Attributes of type float are told from integers by being `Number` objects. */
const float = (x) => new Number(x);

/** The U-Net's ops over a model. */
function opsOf(model) {
  const shape = (v) => model.shapes.get(v);
  const reshape = (v, to) => model.op('Reshape', [v, model.integers(to)], to);
  const transpose = (v, perm) => model.op('Transpose', [v], perm.map((axis) => shape(v)[axis]), { perm });
  const perChannel = (v) => reshape(v, [shape(v)[0], 1, 1]);
  const ops = {
    input: (dims, data) => model.weight(dims, data),
    conv2d(x, w, b, { stride, padding: [top, bottom, left, right] }) {
      const [n, , h, width] = shape(x);
      const [k, , r, s] = shape(w);
      const out = [n, k, Math.floor((h + top + bottom - r) / stride) + 1, Math.floor((width + left + right - s) / stride) + 1];
      return model.op('Conv', b ? [x, w, b] : [x, w], out, { kernel_shape: [r, s], strides: [stride, stride], pads: [top, left, bottom, right] });
    },
    linear: (x, w, b) => model.op('Gemm', [x, w, b], [shape(x)[0], shape(w)[0]], { transB: 1 }),
    groupNorm(x, gamma, beta, { groups, eps }) {
      const dims = shape(x);
      const ones = model.weight([groups], new Float32Array(groups).fill(1));
      const zeros = model.weight([groups], new Float32Array(groups));
      const grouped = reshape(x, [dims[0], groups, dims.slice(1).reduce((a, b) => a * b, 1) / groups]);
      const hat = reshape(model.op('InstanceNormalization', [grouped, ones, zeros], shape(grouped), { epsilon: float(eps) }), dims);
      return model.op('Add', [model.op('Mul', [hat, perChannel(gamma)], dims), perChannel(beta)], dims);
    },
    groupNormSilu: (...args) => ops.silu(ops.groupNorm(...args)),
    silu: (x) => model.op('Mul', [x, model.op('Sigmoid', [x], shape(x))], shape(x)),
    add: (a, b) => model.op('Add', [a, b], shape(a)),
    addChannels: (a, b) => model.op('Add', [a, reshape(b, [...shape(b), 1, 1])], shape(a)),
    concat: (a, b) => model.op('Concat', [a, b], [shape(a)[0], shape(a)[1] + shape(b)[1], ...shape(a).slice(2)], { axis: 1 }),
    upsample(x) {
      const [n, c, h, w] = shape(x);
      const scales = model.weight([4], Float32Array.of(1, 1, 2, 2));
      return model.op('Resize', [x, '', scales], [n, c, 2 * h, 2 * w], { mode: 'nearest', coordinate_transformation_mode: 'asymmetric', nearest_mode: 'floor' });
    },
    selfAttention(x, { q, k, v, out }) {
      const [n, c, h, w] = shape(x);
      const tokens = reshape(transpose(reshape(x, [n, c, h * w]), [0, 2, 1]), [n * h * w, c]);
      const [query, key, value] = [q, k, v].map((pair) => reshape(ops.linear(tokens, ...pair), [n, h * w, c]));
      const scores = model.op('Mul', [model.op('MatMul', [query, transpose(key, [0, 2, 1])], [n, h * w, h * w]), model.weight([1], Float32Array.of(1 / Math.sqrt(c)))], [n, h * w, h * w]);
      const mixed = model.op('MatMul', [model.op('Softmax', [scores], [n, h * w, h * w], { axis: 2 }), value], [n, h * w, c]);
      return reshape(transpose(reshape(ops.linear(reshape(mixed, [n * h * w, c]), ...out), [n, h * w, c]), [0, 2, 1]), [n, c, h, w]);
    },
  };
  return ops;
}

/** A session of the model whose inputs and output are GPU buffers. */
async function handle(model, output, inputs) {
  const session = await ort.InferenceSession.create(model.bytes(output), { executionProviders: ['webgpu'], preferredOutputLocation: 'gpu-buffer' });
  const device = await ort.env.webgpu.device;
  const feeds = {};
  for (const { name } of model.inputs) {
    const { shape, data } = inputs[name];
    const buffer = device.createBuffer({ size: Math.ceil(data.byteLength / 16) * 16, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST });
    device.queue.writeBuffer(buffer, 0, data);
    feeds[name] = ort.Tensor.fromGpuBuffer(buffer, { dataType: 'float32', dims: shape });
  }
  let last;
  return {
    async run(k) {
      for (let i = 0; i < k; i++) {
        last?.dispose();
        last = (await session.run(feeds))[output];
      }
      await device.queue.onSubmittedWorkDone();
    },
    read: () => last.getData(),
  };
}

function kernel(inputs, build) {
  const model = new Model();
  const names = Object.fromEntries(Object.entries(inputs).map(([name, { shape }]) => [name, model.input(name, shape)]));
  return handle(model, build(model, opsOf(model), names), inputs);
}

export async function setup() {
  return {
    version: VERSION,
    matmul: ({ inputs }) => kernel(inputs, (model, _, { a, b }) => model.op('MatMul', [a, b], [...inputs.a.shape.slice(0, -1), inputs.b.shape.at(-1)])),
    // The filter is a weight of the model, so that the runtime may pack it.
    conv2d: ({ inputs: { x, w }, stride, pad }) => kernel({ x }, (model, ops, names) => ops.conv2d(names.x, model.weight(w.shape, w.data), undefined, { stride, padding: [pad, pad, pad, pad] })),
    gn_silu: ({ inputs: { x, gamma, beta }, groups, eps }) => kernel({ x }, (model, ops, names) => ops.groupNormSilu(names.x, model.weight(gamma.shape, gamma.data), model.weight(beta.shape, beta.data), { groups, eps })),
    attention({ inputs }) {
      // Its fused attention takes [batch, tokens, heads·head].
      const [n, heads, tokens, head] = inputs.q.shape;
      const folded = Object.fromEntries(Object.entries(inputs).map(([name, { data }]) => [name, { shape: [n, tokens, heads * head], data: swapHeads(data, heads, tokens, head) }]));
      const row = kernel(folded, (model, _, { q, k, v }) => model.op('MultiHeadAttention', [q, k, v], [n, tokens, heads * head], { num_heads: heads }, 'com.microsoft'));
      return row.then((r) => ({ ...r, read: async () => swapHeads(await r.read(), tokens, heads, head) }));
    },
    unet({ inputs: { x, t }, weights }) {
      return kernel({ x }, (model, ops, names) => unet2d(ops, new Map(weights.map(({ name, shape, data }) => [name, model.weight(shape, data, name)])), raceUnet, names.x, t.data));
    },
  };
}

/** [a, b, inner] to [b, a, inner]. */
function swapHeads(data, a, b, inner) {
  const out = new Float32Array(data.length);
  for (let i = 0; i < a; i++) for (let j = 0; j < b; j++) out.set(data.subarray((i * b + j) * inner, (i * b + j + 1) * inner), (j * a + i) * inner);
  return out;
}
