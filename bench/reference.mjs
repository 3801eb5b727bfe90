/**
 * What every engine's numbers are checked against: the same mathematics in float64 and plain loops, sharing no code with the library. The U-Net
 * and its training step are written from diffusers' definition on a small tape with a gradient for each op. (The library is held against
 * recordings of PyTorch by its tests; where both agree here, so do all three.)
 */

const size = (shape) => shape.reduce((n, d) => n * d, 1);

/** A value on the tape; `grad` is filled by {@link backward}. */
class Value {
  constructor(shape, data, parents = [], pull = () => {}) {
    Object.assign(this, { shape, data, parents, pull, grad: undefined });
  }

  get gradient() {
    return (this.grad ??= new Float64Array(this.data.length));
  }
}

export const value = (shape, data) => new Value(shape, Float64Array.from(data));

/** dL/dv in `grad` of everything that the scalar `loss` was made of. */
export function backward(loss) {
  const order = [];
  const seen = new Set();
  const visit = (v) => {
    if (seen.has(v)) return;
    seen.add(v);
    v.parents.forEach(visit);
    order.push(v);
  };
  visit(loss);
  loss.gradient[0] = 1;
  for (const v of order.reverse()) if (v.grad) v.pull(v.grad);
}

/** [..., M, K] · [..., K, N], equal batch dimensions. */
export function matmul(a, b) {
  const [m, k] = a.shape.slice(-2);
  const n = b.shape.at(-1);
  const lead = a.shape.slice(0, -2);
  const y = new Float64Array(size(lead) * m * n);
  for (let z = 0; z < size(lead); z++) {
    for (let i = 0; i < m; i++) {
      const row = y.subarray((z * m + i) * n, (z * m + i + 1) * n);
      for (let p = 0; p < k; p++) axpy(row, a.data[(z * m + i) * k + p], b.data, (z * k + p) * n);
    }
  }
  return new Value([...lead, m, n], y);
}

/** y += a · x[from …] */
function axpy(y, a, x, from) {
  for (let j = 0; j < y.length; j++) y[j] += a * x[from + j];
}

/** x [N,C,H,W], w [K,C,R,S], b [K] or none; padding [top, bottom, left, right]. */
export function conv2d(x, w, b, { stride = 1, padding = [0, 0, 0, 0] } = {}) {
  const [n, c, height, width] = x.shape;
  const [k, , r, s] = w.shape;
  const [top, bottom, left, right] = padding;
  const p = Math.floor((height + top + bottom - r) / stride) + 1;
  const q = Math.floor((width + left + right - s) / stride) + 1;
  const y = new Float64Array(n * k * p * q);
  if (b) for (let i = 0; i < n * k; i++) y.fill(b.data[i % k], i * p * q, (i + 1) * p * q);
  /** Calls visit(at in w, row of y, row of x, first and last column of y, offset of x's column at y's column 0). */
  const rows = (visit) => {
    for (let i = 0; i < n; i++) {
      for (let o = 0; o < k; o++) {
        for (let channel = 0; channel < c; channel++) {
          for (let tap = 0; tap < r * s; tap++) {
            const dy = Math.floor(tap / s) - top;
            const dx = (tap % s) - left;
            const first = Math.max(0, Math.ceil(-dx / stride));
            const last = Math.min(q - 1, Math.floor((width - 1 - dx) / stride));
            for (let row = Math.max(0, Math.ceil(-dy / stride)); row <= Math.min(p - 1, Math.floor((height - 1 - dy) / stride)); row++) {
              visit((o * c + channel) * r * s + tap, ((i * k + o) * p + row) * q, ((i * c + channel) * height + row * stride + dy) * width + dx, first, last);
            }
          }
        }
      }
    }
  };
  rows((at, out, from, first, last) => {
    const weight = w.data[at];
    for (let j = first; j <= last; j++) y[out + j] += weight * x.data[from + j * stride];
  });
  return new Value([n, k, p, q], y, b ? [x, w, b] : [x, w], (g) => {
    const [gx, gw] = [x.gradient, w.gradient];
    rows((at, out, from, first, last) => {
      const weight = w.data[at];
      let sum = 0;
      for (let j = first; j <= last; j++) {
        sum += g[out + j] * x.data[from + j * stride];
        gx[from + j * stride] += g[out + j] * weight;
      }
      gw[at] += sum;
    });
    if (b) for (let i = 0; i < g.length; i++) b.gradient[Math.floor(i / (p * q)) % k] += g[i];
  });
}

/** x [rows, in], w [out, in], b [out]. */
export function linear(x, w, b) {
  const [rows, k] = x.shape;
  const [n] = w.shape;
  const y = new Float64Array(rows * n);
  for (let i = 0; i < rows; i++) {
    for (let o = 0; o < n; o++) {
      let sum = b.data[o];
      for (let p = 0; p < k; p++) sum += x.data[i * k + p] * w.data[o * k + p];
      y[i * n + o] = sum;
    }
  }
  return new Value([rows, n], y, [x, w, b], (g) => {
    const [gx, gw, gb] = [x.gradient, w.gradient, b.gradient];
    for (let i = 0; i < rows; i++) {
      for (let o = 0; o < n; o++) {
        const d = g[i * n + o];
        gb[o] += d;
        for (let p = 0; p < k; p++) {
          gx[i * k + p] += d * w.data[o * k + p];
          gw[o * k + p] += d * x.data[i * k + p];
        }
      }
    }
  });
}

/** x [N,C,…] over groups of channels. */
export function groupNorm(x, gamma, beta, { groups, eps }) {
  const [n, c] = x.shape;
  const pixels = x.data.length / n / c;
  const width = (c / groups) * pixels;
  const hat = new Float64Array(x.data.length);
  const rstd = new Float64Array(n * groups);
  for (let g = 0; g < n * groups; g++) {
    let mean = 0;
    for (let e = g * width; e < (g + 1) * width; e++) mean += x.data[e] / width;
    let variance = 0;
    for (let e = g * width; e < (g + 1) * width; e++) variance += (x.data[e] - mean) ** 2 / width;
    rstd[g] = 1 / Math.sqrt(variance + eps);
    for (let e = g * width; e < (g + 1) * width; e++) hat[e] = (x.data[e] - mean) * rstd[g];
  }
  const channel = (e) => Math.floor(e / pixels) % c;
  return new Value(x.shape, hat.map((v, e) => v * gamma.data[channel(e)] + beta.data[channel(e)]), [x, gamma, beta], (dy) => {
    const gx = x.gradient;
    for (let g = 0; g < n * groups; g++) {
      let [sum, product] = [0, 0];
      for (let e = g * width; e < (g + 1) * width; e++) {
        const d = dy[e] * gamma.data[channel(e)];
        sum += d / width;
        product += (d * hat[e]) / width;
      }
      for (let e = g * width; e < (g + 1) * width; e++) gx[e] += rstd[g] * (dy[e] * gamma.data[channel(e)] - sum - hat[e] * product);
    }
    dy.forEach((d, e) => {
      gamma.gradient[channel(e)] += d * hat[e];
      beta.gradient[channel(e)] += d;
    });
  });
}

export function silu(x) {
  const sigmoid = x.data.map((v) => 1 / (1 + Math.exp(-v)));
  return new Value(x.shape, x.data.map((v, e) => v * sigmoid[e]), [x], (g) => {
    const gx = x.gradient;
    g.forEach((d, e) => (gx[e] += d * sigmoid[e] * (1 + x.data[e] * (1 - sigmoid[e]))));
  });
}

/** softmax(q·kᵀ/√D)·v; q, k, v [1,heads,T,D]. */
export function attention(q, k, v) {
  const [n, heads, t, d] = q.shape;
  const factor = 1 / Math.sqrt(d);
  const probabilities = new Float64Array(n * heads * t * t);
  const y = new Float64Array(q.data.length);
  for (let h = 0; h < n * heads; h++) {
    for (let i = 0; i < t; i++) {
      const p = probabilities.subarray((h * t + i) * t, (h * t + i + 1) * t);
      for (let j = 0; j < t; j++) for (let e = 0; e < d; e++) p[j] += factor * q.data[(h * t + i) * d + e] * k.data[(h * t + j) * d + e];
      const top = p.reduce((a, b) => Math.max(a, b));
      let sum = 0;
      for (let j = 0; j < t; j++) sum += p[j] = Math.exp(p[j] - top);
      const row = y.subarray((h * t + i) * d, (h * t + i + 1) * d);
      for (let j = 0; j < t; j++) axpy(row, (p[j] /= sum), v.data, (h * t + j) * d);
    }
  }
  return new Value(q.shape, y, [q, k, v], (g) => {
    const [gq, gk, gv] = [q.gradient, k.gradient, v.gradient];
    const dp = new Float64Array(t);
    for (let h = 0; h < n * heads; h++) {
      for (let i = 0; i < t; i++) {
        const at = (h * t + i) * d;
        const p = probabilities.subarray((h * t + i) * t, (h * t + i + 1) * t);
        let dot = 0;
        for (let j = 0; j < t; j++) {
          dp[j] = 0;
          for (let e = 0; e < d; e++) {
            dp[j] += g[at + e] * v.data[(h * t + j) * d + e];
            gv[(h * t + j) * d + e] += p[j] * g[at + e];
          }
          dot += p[j] * dp[j];
        }
        for (let j = 0; j < t; j++) {
          const ds = factor * p[j] * (dp[j] - dot);
          for (let e = 0; e < d; e++) {
            gq[at + e] += ds * k.data[(h * t + j) * d + e];
            gk[(h * t + j) * d + e] += ds * q.data[at + e];
          }
        }
      }
    }
  });
}

/** a + b, where b may be [N,C] for a [N,C,H,W]. */
export function add(a, b) {
  const inner = a.data.length / b.data.length;
  return new Value(a.shape, a.data.map((v, e) => v + b.data[Math.floor(e / inner)]), [a, b], (g) => {
    const [ga, gb] = [a.gradient, b.gradient];
    g.forEach((d, e) => {
      ga[e] += d;
      gb[Math.floor(e / inner)] += d;
    });
  });
}

/** Of two images, along the channels. */
function concat(a, b) {
  const n = a.shape[0];
  const [one, two] = [a.data.length / n, b.data.length / n];
  const y = new Float64Array(n * (one + two));
  for (let i = 0; i < n; i++) {
    y.set(a.data.subarray(i * one, (i + 1) * one), i * (one + two));
    y.set(b.data.subarray(i * two, (i + 1) * two), i * (one + two) + one);
  }
  return new Value([n, a.shape[1] + b.shape[1], ...a.shape.slice(2)], y, [a, b], (g) => {
    for (let i = 0; i < n; i++) {
      axpy(a.gradient.subarray(i * one, (i + 1) * one), 1, g, i * (one + two));
      axpy(b.gradient.subarray(i * two, (i + 1) * two), 1, g, i * (one + two) + one);
    }
  });
}

/** y[e] = x[from(e)], a permutation or repetition. */
function gather(x, shape, from) {
  const y = new Float64Array(size(shape));
  for (let e = 0; e < y.length; e++) y[e] = x.data[from(e)];
  return new Value(shape, y, [x], (g) => {
    const gx = x.gradient;
    for (let e = 0; e < g.length; e++) gx[from(e)] += g[e];
  });
}

function upsample(x) {
  const [n, c, h, w] = x.shape;
  return gather(x, [n, c, 2 * h, 2 * w], (e) => {
    const [column, row, plane] = [e % (2 * w), Math.floor(e / (2 * w)) % (2 * h), Math.floor(e / (4 * w * h))];
    return (plane * h + (row >> 1)) * w + (column >> 1);
  });
}

export function meanSquare(x, target) {
  const n = x.data.length;
  return new Value([1], Float64Array.of(x.data.reduce((sum, v, e) => sum + (v - target[e]) ** 2 / n, 0)), [x], (g) => {
    const gx = x.gradient;
    for (let e = 0; e < n; e++) gx[e] += (g[0] * 2 * (x.data[e] - target[e])) / n;
  });
}

/** diffusers' Attention without its norm and residual: pixels of the normalised image `x` attend to each other, one head of all channels. */
function selfAttention(x, { q, k, v, out }) {
  const [n, c, height, width] = x.shape;
  const pixels = height * width;
  const tokens = gather(x, [n * pixels, c], (e) => (Math.floor(e / c / pixels) * c + (e % c)) * pixels + (Math.floor(e / c) % pixels));
  const projected = [q, k, v].map((pair) => gather(linear(tokens, ...pair), [n, 1, pixels, c], (e) => e));
  const y = linear(gather(attention(...projected), [n * pixels, c], (e) => e), ...out);
  return gather(y, x.shape, (e) => (Math.floor(e / c / pixels) * pixels + (e % pixels)) * c + (Math.floor(e / pixels) % c));
}

/** What {@link unet2d} is built of; peers have the same functions over their own tensors. `groupNormSilu` is both at once. */
export const referenceOps = { input: value, conv2d, linear, groupNorm, groupNormSilu: (...args) => silu(groupNorm(...args)), silu, add, addChannels: add, concat, upsample, selfAttention };

/**
 * diffusers' UNet2DModel with DownBlock2D/AttnDownBlock2D and their mirror images, positional time embedding (no flip, shift 1), SiLU, one head of
 * all channels, over any engine's `ops`. `weights` maps diffusers' names to that engine's values; the embedding of `times` is made on the host.
 */
export function unet2d(ops, weights, { channels, attention: attends, layers, groups, eps }, x, times) {
  const at = (name) => weights.get(name) ?? fail(`no weight "${name}"`);
  const pair = (name) => [at(`${name}.weight`), at(`${name}.bias`)];
  const conv = (name, v, padding = [1, 1, 1, 1], stride = 1) => ops.conv2d(v, ...pair(name), { stride, padding });
  const normSilu = (name, v) => ops.groupNormSilu(v, ...pair(name), { groups, eps });

  const half = channels[0] / 2;
  const embedding = new Float32Array(times.length * 2 * half);
  times.forEach((t, i) => {
    for (let j = 0; j < half; j++) {
      const angle = t * Math.exp((-Math.log(10000) * j) / (half - 1));
      embedding[i * 2 * half + j] = Math.sin(angle);
      embedding[i * 2 * half + half + j] = Math.cos(angle);
    }
  });
  let temb = ops.linear(ops.input([times.length, 2 * half], embedding), ...pair('time_embedding.linear_1'));
  temb = ops.silu(ops.linear(ops.silu(temb), ...pair('time_embedding.linear_2')));

  const resnet = (name, v) => {
    let h = conv(`${name}.conv1`, normSilu(`${name}.norm1`, v));
    h = ops.addChannels(h, ops.linear(temb, ...pair(`${name}.time_emb_proj`)));
    h = conv(`${name}.conv2`, normSilu(`${name}.norm2`, h));
    return ops.add(h, weights.has(`${name}.conv_shortcut.weight`) ? conv(`${name}.conv_shortcut`, v, [0, 0, 0, 0]) : v);
  };
  const attend = (name, v) => {
    const [q, k, value, out] = ['to_q', 'to_k', 'to_v', 'to_out.0'].map((part) => pair(`${name}.${part}`));
    return ops.add(ops.selfAttention(ops.groupNorm(v, ...pair(`${name}.group_norm`), { groups, eps }), { q, k, v: value, out }), v);
  };

  let h = conv('conv_in', x);
  const skips = [h];
  channels.forEach((_, i) => {
    for (let j = 0; j < layers; j++) {
      h = resnet(`down_blocks.${i}.resnets.${j}`, h);
      if (attends[i]) h = attend(`down_blocks.${i}.attentions.${j}`, h);
      skips.push(h);
    }
    if (i === channels.length - 1) return;
    h = conv(`down_blocks.${i}.downsamplers.0.conv`, h, [0, 1, 0, 1], 2);
    skips.push(h);
  });
  h = resnet('mid_block.resnets.1', attend('mid_block.attentions.0', resnet('mid_block.resnets.0', h)));
  channels.forEach((_, i) => {
    for (let j = 0; j <= layers; j++) {
      h = resnet(`up_blocks.${i}.resnets.${j}`, ops.concat(h, skips.pop()));
      if (attends[channels.length - 1 - i]) h = attend(`up_blocks.${i}.attentions.${j}`, h);
    }
    if (i < channels.length - 1) h = conv(`up_blocks.${i}.upsamplers.0.conv`, ops.upsample(h));
  });
  return conv('conv_out', normSilu('conv_norm_out', h));
}

function fail(message) {
  throw new Error(message);
}

/** The U-Net of the race. */
export const raceUnet = { channels: [64, 128, 128], attention: [false, true, false], layers: 1, groups: 32, eps: 1e-6 };

/** Losses of `steps` training steps: mean square error, clipping of the global norm, AdamW. Changes `weights`. */
export function train(weights, config, { x, t, target }, { lr, b1, b2, eps, wd, clip }, steps) {
  const losses = [];
  const moments = new Map([...weights].map(([name, w]) => [name, [new Float64Array(w.data.length), new Float64Array(w.data.length)]]));
  for (let step = 1; step <= steps; step++) {
    const loss = meanSquare(unet2d(referenceOps, weights, config, x, t), target);
    losses.push(loss.data[0]);
    if (step === steps) break;
    backward(loss);
    let square = 0;
    for (const w of weights.values()) for (const g of w.grad) square += g * g;
    const factor = Math.min(1, clip / (Math.sqrt(square) + 1e-6));
    for (const [name, w] of weights) {
      const [m, v] = moments.get(name);
      w.grad.forEach((raw, e) => {
        const g = raw * factor;
        m[e] = b1 * m[e] + (1 - b1) * g;
        v[e] = b2 * v[e] + (1 - b2) * g * g;
        w.data[e] *= 1 - lr * wd;
        w.data[e] -= (lr * (m[e] / (1 - b1 ** step))) / (Math.sqrt(v[e] / (1 - b2 ** step)) + eps);
      });
      w.grad = undefined;
    }
  }
  return losses;
}

/** Steps of a training row whose losses are compared: two updates lie before the last. */
export const trainSteps = 3;

/** What `read` must give after the first run; for `train`, the losses of the first {@link trainSteps} runs. */
export function expected(w, inputs, weights) {
  const values = Object.fromEntries(Object.entries(inputs).map(([key, { shape, data }]) => [key, value(shape, data)]));
  const { x } = values;
  const named = () => new Map(weights.map(({ name, shape, data }) => [name, value(shape, data)]));
  switch (w.kind) {
    case 'matmul':
      return matmul(values.a, values.b).data;
    case 'conv2d':
      return conv2d(x, values.w, undefined, { stride: w.stride, padding: [w.pad, w.pad, w.pad, w.pad] }).data;
    case 'gn_silu':
      return silu(groupNorm(x, values.gamma, values.beta, w)).data;
    case 'attention':
      return attention(values.q, values.k, values.v).data;
    case 'unet':
      return unet2d(referenceOps, named(), raceUnet, x, inputs.t.data).data;
    case 'train':
      return Float64Array.from(train(named(), raceUnet, { x, t: inputs.t.data, target: inputs.target.data }, w, trainSteps));
    default:
      return fail(`no reference for ${w.kind}`);
  }
}
