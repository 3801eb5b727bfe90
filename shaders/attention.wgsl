// Attention by online softmax (Dao et al. 2022, Dao 2023) without workgroup memory: an invocation owns four query rows and goes over the keys
// in chunks of eight. Loop counters and key addresses are the same in all lanes, so that software adapters read keys and values once for a whole vector.
// include lib/index.wgsl
// prologue
alias X = vec4<f32>; // storage of q, k, v and o
alias X4 = vec4<f32>;
alias MASK = f32;
const WIDE = true; // D is divisible by 4, and X is a vec4
const CAUSAL = false;
const HEAD4 = 16u; // D / 4 rounded up
const RESIDENT = true; // queries stay in registers; large heads read them again for every chunk
const RESIDENT4 = 16u; // HEAD4 or, without residence, 1
// end prologue
// include lib/attention.wgsl
// include lib/attention_no_mask.wgsl

@group(0) @binding(5) var<storage, read_write> o: array<X>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>; // [B,heads,T]

override LANES = 8u;

fn store(i: u32, d: u32, x: vec4<f32>) {
  if (WIDE) {
    o[i / 4u + d] = X(x);
    return;
  }
  for (var c = 0u; c < 4u && 4u * d + c < params.head; c++) {
    o[i + 4u * d + c] = X(X4(vec4<f32>(x[c])).STORE);
  }
}

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let w = flat_workgroup(id, count);
  if (w >= params.count) {
    return;
  }
}
