// Random numbers of [N, …]: an invocation makes the four of one Philox block of one sample.
// counter = [block of the sample, sample, step, stream], key = seed, so a sample's numbers do not depend on the batch it is in.
// include lib/index.wgsl
// include lib/philox.wgsl
// prologue
alias X = f32;
alias Y = f32;
// end prologue

struct Params {
  batch: u32,
  elements: u32, // of one sample
  stream: u32,
  limit: u32, // integers: exclusive upper end; dropout: words below it drop
  scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> seed: array<u32>;
@group(0) @binding(2) var<storage, read> samples: array<u32>;
@group(0) @binding(3) var<storage, read> step: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<Y>;
@group(0) @binding(5) var<storage, read> x: array<X>;

struct Block {
  words: vec4<u32>,
  first: u32, // of its elements in y
  count: u32,
}

fn block_of(i: u32) -> Block {
  let blocks = (params.elements + 3u) / 4u;
  let sample = i / blocks;
  if (sample >= params.batch) {
    return Block(vec4<u32>(0u), 0u, 0u);
  }
  let block_index = i % blocks;
  let words = philox4x32(vec4<u32>(block_index, samples[sample], step[0], params.stream), vec2<u32>(seed[0], seed[1]));
  return Block(words, sample * params.elements + 4u * block_index, min(4u, params.elements - 4u * block_index));
}

fn store(b: Block, v: vec4<Y>) {
  if (b.count > 0u) {
    y[b.first] = v.x;
  }
  if (b.count > 1u) {
    y[b.first + 1u] = v.y;
  }
  if (b.count > 2u) {
    y[b.first + 2u] = v.z;
  }
  if (b.count > 3u) {
    y[b.first + 3u] = v.w;
  }
}

@compute @workgroup_size(64)
fn normal(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let b = block_of(flat_workgroup(id, count) * 64u + lane);
  store(b, vec4<Y>(vec4<f32>(box_muller(b.words.x, b.words.y), box_muller(b.words.z, b.words.w))));
}

@compute @workgroup_size(64)
fn uniform_numbers(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let b = block_of(flat_workgroup(id, count) * 64u + lane);
  store(b, vec4<Y>(vec4<f32>(uniform01(b.words.x), uniform01(b.words.y), uniform01(b.words.z), uniform01(b.words.w))));
}

// floor(word·limit·2⁻³²): the bias is below limit·2⁻³².
@compute @workgroup_size(64)
fn integers(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let b = block_of(flat_workgroup(id, count) * 64u + lane);
  let w = b.words;
  store(b, vec4<Y>(vec4<u32>(mul_high(w.x, params.limit), mul_high(w.y, params.limit), mul_high(w.z, params.limit), mul_high(w.w, params.limit))));
}

fn kept(b: Block, k: u32, word: u32) -> f32 {
  if (k >= b.count || word < params.limit) {
    return 0.0;
  }
  return f32(x[b.first + k]) * params.scale;
}

@compute @workgroup_size(64)
fn dropout(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let b = block_of(flat_workgroup(id, count) * 64u + lane);
  store(b, vec4<Y>(vec4<f32>(kept(b, 0u, b.words.x), kept(b, 1u, b.words.y), kept(b, 2u, b.words.z), kept(b, 3u, b.words.w))));
}
