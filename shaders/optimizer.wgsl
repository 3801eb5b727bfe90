// Optimizers over whole slabs: parameters, gradients, moments and EMA share one layout, so one dispatch updates every weight of a slab.
// `control` runs first, as a single invocation: it decides clipping, skipping and the loss scale on the GPU, so no number goes to the host.
// include lib/index.wgsl

struct Params {
  count: u32, // weights in the slab, in vec4
  table_rows: u32,
  ring: u32, // rows of metrics
  max_norm: f32, // 0: no clipping
  beta1: f32,
  beta2: f32,
  eps: f32,
  weight_decay: f32,
  growth_interval: u32, // 0: the loss scale stays
  gradient_scale: f32, // 1/(number of accumulated batches)
}

@group(0) @binding(0) var<uniform> params: Params;
// One row per update, computed in float64 on the host: learning rate, 1/(1-β1ⁿ), 1/√(1-β2ⁿ), EMA decay.
@group(0) @binding(1) var<storage, read> table: array<vec4<f32>>;
// [0] steps run, [1] updates made, [2] updates since the loss scale changed, [3] steps skipped.
@group(0) @binding(2) var<storage, read_write> counters: array<u32>;
// [0] learning rate, [1] 1/(1-β1ⁿ), [2] 1/√(1-β2ⁿ), [3] EMA decay, [4] factor on gradients, [5] 1 to update or 0 to skip, [6] loss scale.
@group(0) @binding(3) var<storage, read_write> control: array<f32>;
@group(0) @binding(4) var<storage, read> loss: array<f32>;
@group(0) @binding(5) var<storage, read> square_norm: array<f32>; // of the scaled gradients
@group(0) @binding(6) var<storage, read_write> metrics: array<vec4<f32>>; // loss, gradient norm, learning rate, loss scale or 0 if skipped

@compute @workgroup_size(1)
fn decide() {
  let scale = control[6];
  let unscale = params.gradient_scale / scale;
  // Implementations may assume that nothing is infinite or NaN, so only the bits can tell.
  let finite = (bitcast<u32>(square_norm[0]) & 0x7f800000u) != 0x7f800000u;
  let norm = sqrt(select(0.0, square_norm[0], finite)) * unscale;
  var factor = unscale;
  if (params.max_norm > 0.0) {
    factor *= min(1.0, params.max_norm / (norm + 1e-6));
  }
  let row = table[min(counters[1], params.table_rows - 1u)];
  control[0] = row.x;
  control[1] = row.y;
  control[2] = row.z;
  control[3] = row.w;
  control[4] = factor;
  control[5] = select(0.0, 1.0, finite);
  metrics[counters[0] % params.ring] = vec4<f32>(loss[0], norm, row.x, select(0.0, scale, finite));
  counters[0] += 1u;
  if (finite) {
    counters[1] += 1u;
    counters[2] += 1u;
    // Micikevicius et al. 2018: double after a while without overflow, halve on overflow.
    if (params.growth_interval > 0u && counters[2] >= params.growth_interval) {
      counters[2] = 0u;
      control[6] = min(scale * 2.0, 16777216.0);
    }
  } else {
    counters[3] += 1u;
    counters[2] = 0u;
    if (params.growth_interval > 0u) {
      control[6] = max(scale * 0.5, 1.0);
    }
  }
}

@group(0) @binding(7) var<storage, read_write> weight: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read> gradient: array<vec4<f32>>;
@group(0) @binding(9) var<storage, read_write> moment1: array<vec4<f32>>;
@group(0) @binding(10) var<storage, read_write> moment2: array<vec4<f32>>;
@group(0) @binding(11) var<storage, read_write> ema: array<vec4<f32>>;
@group(0) @binding(12) var<storage, read> decided: array<f32>; // control, read-only

// AdamW (Loshchilov & Hutter 2019), as torch.optim.AdamW: decay is decoupled and comes first.
@compute @workgroup_size(64)
fn adamw(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.count || decided[5] == 0.0) {
    return;
  }
  let g = gradient[i] * decided[4];
  let m = params.beta1 * moment1[i] + (1.0 - params.beta1) * g;
  let v = params.beta2 * moment2[i] + (1.0 - params.beta2) * g * g;
  moment1[i] = m;
  moment2[i] = v;
  let lr = decided[0];
  let step = lr * decided[1] * m / (sqrt(v) * decided[2] + params.eps);
  let w = weight[i] * (1.0 - lr * params.weight_decay) - step;
  weight[i] = w;
  ema[i] = ema[i] - (1.0 - decided[3]) * (ema[i] - w);
}

// torch.optim.SGD with momentum beta1 (0: none) and coupled weight decay.
@compute @workgroup_size(64)
fn sgd(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.count || decided[5] == 0.0) {
    return;
  }
  let g = gradient[i] * decided[4] + params.weight_decay * weight[i];
  let m = params.beta1 * moment1[i] + g;
  moment1[i] = m;
  let w = weight[i] - decided[0] * m;
  weight[i] = w;
  ema[i] = ema[i] - (1.0 - decided[3]) * (ema[i] - w);
}
