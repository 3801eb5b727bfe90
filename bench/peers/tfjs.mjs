/** TensorFlow.js on its WebGPU backend, [N,H,W,C] and [R,S,C,K] as its convolutions want them; the model op by op, gradients by its tape. */
import * as tf from '@tensorflow/tfjs';
import '@tensorflow/tfjs-backend-webgpu';
import { raceUnet, unet2d } from '../reference.mjs';

const filter = ({ shape, data }) => tf.tidy(() => tf.transpose(tf.tensor(data, shape), [2, 3, 1, 0]));
const image = ({ shape, data }) => tf.tidy(() => tf.transpose(tf.tensor(data, shape), [0, 2, 3, 1]));
const tensor = ({ shape, data }) => tf.tensor(data, shape);

const ops = {
  input: (shape, data) => tf.tensor(data, shape),
  conv2d(x, w, b, { stride, padding: [top, bottom, left, right] }) {
    const padded = top + bottom + left + right && (top !== bottom || stride > 1) ? tf.pad(x, [[0, 0], [top, bottom], [left, right], [0, 0]]) : x;
    const y = tf.conv2d(padded, w, stride, padded === x && top > 0 ? 'same' : 'valid');
    return b ? tf.add(y, b) : y;
  },
  linear: (x, w, b) => tf.add(tf.matMul(x, w, false, true), b),
  groupNorm(x, gamma, beta, { groups, eps }) {
    const [n, h, w, c] = x.shape;
    const grouped = tf.reshape(x, [n, h * w, groups, c / groups]);
    const { mean, variance } = tf.moments(grouped, [1, 3], true);
    const hat = tf.reshape(tf.mul(tf.sub(grouped, mean), tf.rsqrt(tf.add(variance, eps))), x.shape);
    return tf.add(tf.mul(hat, gamma), beta);
  },
  groupNormSilu: (...args) => ops.silu(ops.groupNorm(...args)),
  silu: (x) => tf.mul(x, tf.sigmoid(x)),
  add: (a, b) => tf.add(a, b),
  addChannels: (a, b) => tf.add(a, tf.reshape(b, [b.shape[0], 1, 1, b.shape[1]])),
  concat: (a, b) => tf.concat([a, b], 3),
  upsample: (x) => tf.image.resizeNearestNeighbor(x, [2 * x.shape[1], 2 * x.shape[2]]),
  selfAttention(x, { q, k, v, out }) {
    const [n, h, w, c] = x.shape;
    const tokens = tf.reshape(x, [-1, c]);
    const [query, key, value] = [q, k, v].map((pair) => tf.reshape(ops.linear(tokens, ...pair), [n, h * w, c]));
    const scores = tf.softmax(tf.mul(tf.matMul(query, key, false, true), 1 / Math.sqrt(c)));
    return tf.reshape(ops.linear(tf.reshape(tf.matMul(scores, value), [-1, c]), ...out), x.shape);
  },
};

const named = (weights) => new Map(weights.map((t) => [t.name, t.shape.length === 4 ? filter(t) : tensor(t)]));

async function finish() {
  // It submits by itself when enough commands have gathered; then there is nothing left to submit.
  if (tf.backend().commandEncoder) {
    tf.backend().endComputePassEncoder();
    tf.backend().submitQueue();
  }
  await tf.backend().device.queue.onSubmittedWorkDone();
}

/** `f()` makes one tensor; `layout` brings it into the reference layout for `read`. */
function handle(f, layout = (y) => y) {
  let last;
  return {
    async run(k) {
      for (let i = 0; i < k; i++) {
        last?.dispose();
        last = tf.tidy(f);
      }
      await finish();
    },
    async read() {
      const y = tf.tidy(() => layout(last));
      const data = await y.data();
      if (y !== last) y.dispose();
      return data;
    },
  };
}

const channelsFirst = (y) => tf.transpose(y, [0, 3, 1, 2]);

export async function setup() {
  await tf.setBackend('webgpu');
  await tf.ready();
  return {
    version: VERSION,
    matmul({ inputs }) {
      const [a, b] = [tensor(inputs.a), tensor(inputs.b)];
      return handle(() => tf.matMul(a, b));
    },
    conv2d({ inputs, stride, pad }) {
      const [x, w] = [image(inputs.x), filter(inputs.w)];
      return handle(() => ops.conv2d(x, w, undefined, { stride, padding: [pad, pad, pad, pad] }), channelsFirst);
    },
    gn_silu({ inputs, groups, eps }) {
      const [x, gamma, beta] = [image(inputs.x), tensor(inputs.gamma), tensor(inputs.beta)];
      return handle(() => ops.groupNormSilu(x, gamma, beta, { groups, eps }), channelsFirst);
    },
    attention({ inputs }) {
      const [q, k, v] = ['q', 'k', 'v'].map((key) => tensor(inputs[key]));
      const factor = 1 / Math.sqrt(q.shape[3]);
      return handle(() => tf.matMul(tf.softmax(tf.mul(tf.matMul(q, k, false, true), factor)), v));
    },
    unet({ inputs, weights }) {
      const [x, values] = [image(inputs.x), named(weights)];
      return handle(() => unet2d(ops, values, raceUnet, x, inputs.t.data), channelsFirst);
    },
    train({ inputs, weights, lr, b1, b2, eps, wd, clip, ema: decay }) {
      const [x, target] = [image(inputs.x), image(inputs.target)];
      const variables = new Map([...named(weights)].map(([name, value]) => [name, tf.variable(value)]));
      const names = [...variables.keys()];
      let moments = names.map((name) => [tf.zerosLike(variables.get(name)), tf.zerosLike(variables.get(name)), tf.clone(variables.get(name))]);
      let [loss, n] = [undefined, 0];
      const step = () => {
        n++;
        const { value, grads } = tf.variableGrads(() => tf.mean(tf.squaredDifference(unet2d(ops, variables, raceUnet, x, inputs.t.data), target)), [...variables.values()]);
        const raw = names.map((name) => grads[variables.get(name).name]);
        const square = tf.addN(raw.map((g) => tf.sum(tf.square(g))));
        const factor = tf.minimum(1, tf.div(clip, tf.add(tf.sqrt(square), 1e-6)));
        const next = names.map((name, i) => {
          const [m, v, ema] = moments[i];
          const variable = variables.get(name);
          const g = tf.mul(raw[i], factor);
          const newM = tf.add(tf.mul(m, b1), tf.mul(g, 1 - b1));
          const newV = tf.add(tf.mul(v, b2), tf.mul(tf.square(g), 1 - b2));
          const move = tf.div(tf.mul(newM, 1 / (1 - b1 ** n)), tf.add(tf.sqrt(tf.mul(newV, 1 / (1 - b2 ** n))), eps));
          variable.assign(tf.sub(tf.mul(variable, 1 - lr * wd), tf.mul(move, lr)));
          return [newM, newV, tf.add(tf.mul(ema, decay), tf.mul(variable, 1 - decay))];
        });
        return { value, next };
      };
      return {
        async run(k) {
          for (let i = 0; i < k; i++) {
            loss?.dispose();
            const { value, next } = tf.tidy(step);
            tf.dispose(moments);
            [loss, moments] = [value, next];
          }
          await finish();
        },
        read: () => loss.data(),
      };
    },
  };
}
