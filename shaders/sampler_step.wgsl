// One step of a sampler program (src/sampler/program.ts): every number of the step comes from row `counter` of the coefficient table, so a
// replay does a whole trajectory without the host. Row: predX0, next, store 0, store 1 of COLUMNS coefficients each, then timestep,
// inputScale, slot of store 0, slot of store 1 (-1: none), noiseIndex (-1: none), log std offset, log std slope, 0.
// Order within a step: sampler_input, the model, then with dynamic thresholding `predict` and the quantile, then `update`; the counter is
// advanced last.
// include lib/index.wgsl
// prologue
alias OUTPUT = f32;
const COLUMNS = 10u;
const SLOTS = 6u;
const NOISE = true;
const RECORDED = false;
const VARIANCE = 0u;
const BOUND = 0u;
const WRITE_X0 = false;
// end prologue

struct Params {
  count: u32, // elements of the sample, all images
  size: u32, // elements of one image
  steps: u32, // rows of the table
  output_size: u32, // elements of one image of the model's output: size, or 2 * size with a variance half
  range: f32, // of clipping
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read> counter: array<u32>;
@group(0) @binding(3) var<storage, read_write> sample: array<f32>;
@group(0) @binding(4) var<storage, read> output: array<OUTPUT>;
@group(0) @binding(5) var<storage, read> noise: array<f32>; // this step's draw, or all draws of the run one after another (RECORDED)
@group(0) @binding(6) var<storage, read_write> slots: array<f32>; // [SLOTS, count]
@group(0) @binding(7) var<storage, read> thresholds: array<f32>; // per image
@group(0) @binding(8) var<storage, read_write> x0: array<f32>;

// Values of VARIANCE and BOUND.
const LEARNED_RANGE = 1u;
const LEARNED = 2u;
const CLIP = 1u;
const QUANTILE = 2u;

fn row() -> u32 {
  return min(counter[0], params.steps - 1u) * (4u * COLUMNS + 8u);
}

// `value` times its coefficients in the four linear combinations of the step.
fn term(base: u32, column: u32, value: f32) -> vec4<f32> {
  let at = base + column;
  return vec4<f32>(table[at], table[at + COLUMNS], table[at + 2u * COLUMNS], table[at + 3u * COLUMNS]) * value;
}

fn scaled_noise(scalars: u32, i: u32, at: u32) -> f32 {
  let index = table[scalars + 4u];
  if (!NOISE || index < 0.0) {
    return 0.0;
  }
  var z = 0.0;
  if (RECORDED) {
    z = noise[u32(index) * params.count + i];
  } else {
    z = noise[i];
  }
  if (VARIANCE == LEARNED_RANGE) {
    z *= exp(clamp(table[scalars + 5u] + table[scalars + 6u] * f32(output[at + params.size]), -87.0, 87.0));
  } else if (VARIANCE == LEARNED) {
    z *= sqrt(max(f32(output[at + params.size]), 0.0));
  }
  return z;
}

// predX0, next, store 0 and store 1 at element i, without what the bounded x0 adds to them.
fn combine(base: u32, i: u32) -> vec4<f32> {
  let at = (i / params.size) * params.output_size + i % params.size;
  var sums = term(base, 0u, sample[i]) + term(base, 1u, f32(output[at]));
  if (NOISE) {
    sums += term(base, 3u, scaled_noise(base + 4u * COLUMNS, i, at));
  }
  for (var k = 0u; k < SLOTS; k++) {
    sums += term(base, 4u + k, slots[k * params.count + i]);
  }
  return sums;
}

@compute @workgroup_size(64)
fn update(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.count) {
    return;
  }
  let base = row();
  var sums = combine(base, i);
  var predicted = sums.x;
  if (BOUND == CLIP) {
    predicted = clamp(predicted, -params.range, params.range);
  } else if (BOUND == QUANTILE) {
    let s = thresholds[i / params.size];
    predicted = clamp(predicted, -s, s) / s;
  }
  if (BOUND != 0u) {
    sums += term(base, 2u, predicted);
  }
  if (WRITE_X0) {
    x0[i] = predicted;
  }
  // All slots were read above, so they may be written now.
  sample[i] = sums.y;
  let first = table[base + 4u * COLUMNS + 2u];
  let second = table[base + 4u * COLUMNS + 3u];
  if (SLOTS > 0u && first >= 0.0) {
    slots[u32(first) * params.count + i] = sums.z;
  }
  if (SLOTS > 0u && second >= 0.0) {
    slots[u32(second) * params.count + i] = sums.w;
  }
}

// Predicted x0 before it is bounded, for `threshold`.
@compute @workgroup_size(64)
fn predict(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i < params.count) {
    x0[i] = combine(row(), i).x;
  }
}
