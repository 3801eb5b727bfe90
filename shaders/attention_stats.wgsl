// What the gradient kernels of attention need of each query row: lse·log2(e) and δ = Σ dO∘O, less the gradient of lse where there is one
// (d lse / dS = P, so it joins δ in dS = P∘(dP − δ)).
// include lib/index.wgsl
// prologue
alias V = vec4<f32>; // f32 where D is not divisible by 4
alias X = vec4<f32>;
// end prologue
// include lib/lanes_4.wgsl

struct Params {
  t: u32,
  heads: u32,
  head: u32, // in V
  count: u32, // B·heads·T
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> o: array<X>;
@group(0) @binding(2) var<storage, read> dout: array<X>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> dlse: array<f32>;
@group(0) @binding(5) var<storage, read_write> stats: array<vec2<f32>>;

// i counts [B,T,heads], as o's heads lie in memory.
fn delta(i: u32) -> f32 {
  var sum = V();
  for (var d = 0u; d < params.head; d++) {
    sum += V(o[i * params.head + d]) * V(dout[i * params.head + d]);
  }
  return lane_sum(sum);
}

// The place of i in [B,heads,T].
fn row_of(i: u32) -> u32 {
  let h = i % params.heads;
  let t = i / params.heads % params.t;
  return (i / params.heads / params.t * params.heads + h) * params.t + t;
}

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i < params.count) {
    let row = row_of(i);
    stats[row] = vec2<f32>(lse[row] * 1.44269504, delta(i));
  }
}

@compute @workgroup_size(64)
fn forward_with_dlse(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 64u + lane;
  if (i < params.count) {
    let row = row_of(i);
    stats[row] = vec2<f32>(lse[row] * 1.44269504, delta(i) - dlse[row]);
  }
}
