/** jax-js: everything under `jit`, [N,C,H,W]. Functions of jax-js take ownership of their arguments; `.ref` keeps a value. */
import { blockUntilReady, defaultDevice, getWebGPUDevice, init, jit, lax, nn, numpy as np, tree, valueAndGrad } from '@jax-js/jax';
import { raceUnet, unet2d } from '../reference.mjs';

const array = ({ shape, data }) => np.array(data, { shape });

const ops = {
  input: (shape, data) => np.array(data, { shape }),
  conv2d: (x, w, b, { stride, padding: [top, bottom, left, right] }) => {
    const y = lax.convGeneralDilated(x.ref, w.ref, [stride, stride], [[top, bottom], [left, right]]);
    return b ? y.add(b.ref.reshape([1, -1, 1, 1])) : y;
  },
  linear: (x, w, b) => np.matmul(x.ref, w.ref.transpose()).add(b.ref),
  groupNorm(x, gamma, beta, { groups, eps }) {
    const { shape } = x;
    const grouped = nn.standardize(x.ref.reshape([shape[0], groups, -1]), -1, { epsilon: eps }).reshape(shape);
    return grouped.mul(gamma.ref.reshape([1, -1, 1, 1])).add(beta.ref.reshape([1, -1, 1, 1]));
  },
  groupNormSilu: (...args) => nn.silu(ops.groupNorm(...args)),
  silu: (x) => nn.silu(x.ref),
  add: (a, b) => a.ref.add(b.ref),
  addChannels: (a, b) => a.ref.add(b.ref.reshape([...b.shape, 1, 1])),
  concat: (a, b) => np.concatenate([a.ref, b.ref], 1),
  upsample: (x) => np.repeat(np.repeat(x.ref, 2, 2), 2, 3),
  selfAttention(x, { q, k, v, out }) {
    const [n, c, height, width] = x.shape;
    const tokens = x.ref.reshape([n, c, height * width]).transpose([0, 2, 1]).reshape([-1, c]);
    const heads = ([w, b]) => ops.linear(tokens, w, b).reshape([n, height * width, 1, c]);
    const mixed = nn.dotProductAttention(heads(q), heads(k), heads(v)).reshape([-1, c]);
    return ops.linear(mixed, ...out).reshape([n, height * width, c]).transpose([0, 2, 1]).reshape([n, c, height, width]);
  },
};

const namedTree = (weights) => Object.fromEntries(weights.map((t) => [t.name, array(t)]));

/** `call()` gives the output array; earlier outputs are submitted and freed. */
function handle(call) {
  let last;
  return {
    async run(k) {
      for (let i = 0; i < k; i++) {
        last?.dispose();
        last = call();
        if (i < k - 1) {
          last.gpuBufferSync(); // submits, and gives the array up
          last = undefined;
        }
      }
      await blockUntilReady(last);
    },
    read: () => last.ref.data(),
  };
}

function kernel(f, inputs) {
  const compiled = jit(f);
  return handle(() => compiled(...inputs.map((t) => t.ref)));
}

export async function setup() {
  await init('webgpu');
  defaultDevice('webgpu');
  return {
    version: VERSION,
    matmul: ({ inputs: { a, b } }) => kernel((x, y) => np.matmul(x, y), [array(a), array(b)]),
    conv2d: ({ inputs: { x, w }, stride, pad }) => kernel((image, filter) => ops.conv2d(image, filter, undefined, { stride, padding: [pad, pad, pad, pad] }), [array(x), array(w)]),
    gn_silu: ({ inputs: { x, gamma, beta }, groups, eps }) => kernel((...args) => ops.groupNormSilu(...args, { groups, eps }), [array(x), array(gamma), array(beta)]),
    attention({ inputs: { q, k, v } }) {
      const factor = 1 / Math.sqrt(q.shape[3]);
      return kernel((query, key, val) => np.matmul(nn.softmax(np.matmul(query, key.transpose([0, 1, 3, 2])).mul(factor), -1), val), [array(q), array(k), array(v)]);
    },
    unet({ inputs: { x, t }, weights }) {
      const params = namedTree(weights);
      const image = array(x);
      const forward = jit((p, input) => unet2d(ops, new Map(Object.entries(p)), raceUnet, input, t.data));
      return handle(() => forward(tree.ref(params), image.ref));
    },
    train({ inputs: { x, t, target }, weights, lr, b1, b2, eps, wd, clip, ema: decay }) {
      const [image, wanted] = [array(x), array(target)];
      const zeros = () => Object.fromEntries(weights.map(({ name, shape }) => [name, np.zeros(shape)]));
      let state = { params: namedTree(weights), m: zeros(), v: zeros(), ema: namedTree(weights) };
      const lossOf = (params, input, goal) => np.mean(np.square(unet2d(ops, new Map(Object.entries(params)), raceUnet, input, t.data).sub(goal)));
      const step = jit(({ params, m, v, ema }, input, goal, c1, c2) => {
        const [loss, grads] = valueAndGrad(lossOf)(tree.ref(params), input, goal);
        const names = Object.keys(params);
        const square = names.map((name) => np.sum(np.square(grads[name].ref))).reduce((a, b) => a.add(b));
        const factor = np.minimum(1, np.reciprocal(np.sqrt(square).add(1e-6)).mul(clip));
        const next = { params: {}, m: {}, v: {}, ema: {} };
        for (const name of names) {
          const g = grads[name].mul(factor.ref);
          next.m[name] = m[name].mul(b1).add(g.ref.mul(1 - b1));
          next.v[name] = v[name].mul(b2).add(np.square(g).mul(1 - b2));
          const move = next.m[name].ref.mul(c1.ref).div(np.sqrt(next.v[name].ref.mul(c2.ref)).add(eps));
          next.params[name] = params[name].mul(1 - lr * wd).sub(move.mul(lr));
          next.ema[name] = ema[name].mul(decay).add(next.params[name].ref.mul(1 - decay));
        }
        return [loss, next];
      });
      let [loss, n] = [undefined, 0];
      return {
        async run(k) {
          for (let i = 0; i < k; i++) {
            n++;
            loss?.dispose();
            [loss, state] = step(state, image.ref, wanted.ref, np.array(1 / (1 - b1 ** n)), np.array(1 / (1 - b2 ** n)));
          }
          await blockUntilReady([loss, state]);
          await getWebGPUDevice().queue.onSubmittedWorkDone();
        },
        read: async () => Float32Array.from(await loss.ref.data()),
      };
    },
  };
}
