/** The rows of the race: shapes, data, flops. Shapes and data are in the reference layout (see ours.mjs). */

/** mulberry32, then Box and Muller: standard normal numbers that are the same everywhere. */
function normals(seed, n) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 15), z | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
  const out = new Float32Array(n);
  for (let i = 0; i < n; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    const angle = 2 * Math.PI * uniform();
    out[i] = radius * Math.cos(angle);
    if (i + 1 < n) out[i + 1] = radius * Math.sin(angle);
  }
  return out;
}

const size = (shape) => shape.reduce((n, d) => n * d, 1);
const normal = (seed, shape, std = 1, mean = 0) => ({ shape, data: normals(seed, size(shape)).map((v) => mean + std * v) });

function matmul(name, [batch, m, k, n]) {
  const lead = batch > 1 ? [batch] : [];
  return {
    id: `matmul-${batch > 1 ? `${batch}x` : ''}${batch === 1 && m === k && k === n ? m : `${m}x${k}x${n}`}`,
    kind: 'matmul',
    name,
    flops: 2 * batch * m * k * n,
    bytes: 4 * batch * (m * k + k * n + m * n),
    inputs: () => ({ a: normal(1, [...lead, m, k]), b: normal(2, [...lead, k, n]) }),
  };
}

function conv(name, [n, c, k, height, kernel, stride, width = height]) {
  const pad = (kernel - 1) / 2;
  const outOf = (size) => Math.floor((size + 2 * pad - kernel) / stride) + 1;
  const pixels = outOf(height) * outOf(width);
  return {
    id: `conv-${kernel}x${kernel}-${stride > 1 ? `stride${stride}-` : ''}${n}x${c}-${k}x${height}${width === height ? '' : `x${width}`}`,
    kind: 'conv2d',
    name,
    flops: 2 * n * k * c * kernel * kernel * pixels,
    bytes: 4 * (n * c * height * width + k * c * kernel * kernel + n * k * pixels),
    stride,
    pad,
    inputs: () => ({ x: normal(3, [n, c, height, width]), w: normal(4, [k, c, kernel, kernel], 1 / Math.sqrt(c * kernel * kernel)) }),
  };
}

function groupNormSilu(name, [n, c, height, groups, width = height]) {
  return {
    id: `gn-silu-${n}x${c}x${height}${width === height ? '' : `x${width}`}`,
    kind: 'gn_silu',
    name,
    flops: 12 * n * c * height * width,
    bytes: 4 * 2 * n * c * height * width,
    groups,
    eps: 1e-5,
    inputs: () => ({ x: normal(5, [n, c, height, width], 2, 0.5), gamma: normal(6, [c], 0.3, 1), beta: normal(7, [c], 0.3) }),
  };
}

function attention(name, [heads, tokens, head]) {
  return {
    id: `attention-${heads}x${tokens}x${head}`,
    kind: 'attention',
    name,
    flops: 4 * heads * tokens * tokens * head,
    bytes: 4 * 4 * heads * tokens * head,
    inputs: () => Object.fromEntries(['q', 'k', 'v'].map((key, i) => [key, normal(8 + i, [1, heads, tokens, head])])),
  };
}

/** Of one image, forward; multiplications and additions of convolutions, linear layers and attention. */
const unetFlops = 2.15e9;
const times = [7, 250, 500, 999, 42, 311, 801, 620];

function unet(batch) {
  const shape = [batch, 3, 32, 32];
  return {
    id: `unet-${batch}`,
    kind: 'unet',
    name: `U-Net forward, batch ${batch}`,
    flops: unetFlops * batch,
    inputs: () => ({ x: normal(11, shape), t: { shape: [batch], data: Float32Array.from({ length: batch }, (_, i) => times[i % times.length]) } }),
  };
}

function train(batch) {
  const { inputs } = unet(batch);
  return {
    id: `train-${batch}`,
    kind: 'train',
    name: `U-Net training step, batch ${batch}`,
    flops: 3 * unetFlops * batch,
    lr: 1e-3,
    b1: 0.9,
    b2: 0.999,
    eps: 1e-8,
    wd: 0.01,
    clip: 1,
    ema: 0.9999,
    inputs: () => ({ ...inputs(), target: normal(12, [batch, 3, 32, 32]) }),
  };
}

export const workloads = [
  matmul('matmul 256³', [1, 256, 256, 256]),
  matmul('matmul 512³', [1, 512, 512, 512]),
  matmul('matmul 1024³', [1, 1024, 1024, 1024]),
  matmul('batched matmul 8×(256×64×256)', [8, 256, 64, 256]),
  conv('conv 3×3, 1×128→128×32×32', [1, 128, 128, 32, 3, 1]),
  conv('conv 3×3, 4×64→64×32×32', [4, 64, 64, 32, 3, 1]),
  conv('conv 3×3, 1×256→256×16×16', [1, 256, 256, 16, 3, 1]),
  conv('conv 1×1, 1×256→256×32×32', [1, 256, 256, 32, 1, 1]),
  conv('conv 3×3 stride 2, 1×128→128×32×32', [1, 128, 128, 32, 3, 2]),
  groupNormSilu('group norm + SiLU, 4×128×32×32', [4, 128, 32, 32]),
  attention('attention, 8 heads × 256 × 64', [8, 256, 64]),
  attention('attention, 8 heads × 1024 × 64', [8, 1024, 64]),
  unet(1),
  unet(4),
  train(4),
];

/** Sizes that no kernel was tuned at: odd, prime, oblong, of other models. */
export const otherWorkloads = [
  matmul('matmul 333×777×129', [1, 333, 777, 129]),
  matmul('matmul 640×320×640', [1, 640, 320, 640]),
  matmul('matmul 77×768×320', [1, 77, 768, 320]),
  matmul('matmul 4×1280×320', [1, 4, 1280, 320]),
  matmul('matmul 1×1024×1024', [1, 1, 1024, 1024]),
  matmul('matmul 2×1280×1280', [1, 2, 1280, 1280]),
  matmul('batched matmul 5×(100×48×170)', [5, 100, 48, 170]),
  conv('conv 3×3, 2×96→160×24×40', [2, 96, 160, 24, 3, 1, 40]),
  conv('conv 3×3, 1×33→65×41×29', [1, 33, 65, 41, 3, 1, 29]),
  conv('conv 3×3, 3×320→320×8×8', [3, 320, 320, 8, 3, 1]),
  conv('conv 3×3, 1×3→64×64×64', [1, 3, 64, 64, 3, 1]),
  conv('conv 3×3, 1×3→32×128×128', [1, 3, 32, 128, 3, 1]),
  conv('conv 3×3, 1×64→3×64×64', [1, 64, 3, 64, 3, 1]),
  conv('conv 5×5, 1×48→48×30×30', [1, 48, 48, 30, 5, 1]),
  conv('conv 1×1, 3×72→200×20×20', [3, 72, 200, 20, 1, 1]),
  conv('conv 3×3 stride 2, 2×80→112×50×50', [2, 80, 112, 50, 3, 2]),
  groupNormSilu('group norm + SiLU, 2×96×40×24, 8 groups', [2, 96, 40, 8, 24]),
  groupNormSilu('group norm + SiLU, 1×320×64×64', [1, 320, 64, 32]),
  attention('attention, 5 heads × 400 × 40', [5, 400, 40]),
  attention('attention, 1 head × 961 × 128', [1, 961, 128]),
  attention('attention, 12 heads × 77 × 64', [12, 77, 64]),
];

/** Values for the weights that `unetWeights` lists: PyTorch's default initialisation, but norms that do something. */
export function unetWeightValues(specs) {
  return specs.map(({ name, shape, init }, i) => ({
    name,
    shape,
    data: init.kind === 'constant' ? normal(100 + i, shape, 0.1, init.value).data : normal(100 + i, shape, 1 / Math.sqrt(3 * init.fanIn)).data,
  }));
}
