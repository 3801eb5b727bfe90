// What a model is given in step `counter` of a sampler program: the scaled sample and the time step, COPIES times over (2 under guidance).
// include lib/index.wgsl
// prologue
const COLUMNS = 10u;
const COPIES = 1u;
// end prologue

struct Params {
  count: u32, // elements of the sample
  images: u32,
  steps: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read> counter: array<u32>;
@group(0) @binding(3) var<storage, read> sample: array<f32>;
@group(0) @binding(4) var<storage, read_write> input: array<f32>; // [COPIES, count]
@group(0) @binding(5) var<storage, read_write> timestep: array<f32>; // [COPIES, images]
@group(0) @binding(6) var<storage, read_write> draw: array<u32>;

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i >= params.count) {
    return;
  }
  let scalars = min(counter[0], params.steps - 1u) * (4u * COLUMNS + 8u) + 4u * COLUMNS;
  let value = sample[i] * table[scalars + 1u];
  for (var k = 0u; k < COPIES; k++) {
    input[k * params.count + i] = value;
    // There are at least as many elements as images.
    if (i < params.images) {
      timestep[k * params.images + i] = table[scalars];
    }
  }
  // Step 0 of the random numbers is the start noise.
  if (i == 0u) {
    draw[0] = counter[0] + 1u;
  }
}
