// C = A·B for software adapters with subgroups of 4 lanes (SwiftShader): a subgroup computes 8x16 of C, see lib/broadcast_tile.wgsl.
// A B that is stored transposed is transposed before.
// include lib/index.wgsl
// prologue
alias A = f32;
alias A4 = vec4<f32>;
alias Y = f32;
alias V = f32;
const A_WIDE = false;
const K_EDGE = false; // k is not divisible by 4
const TRANSPOSE_A = false; // a is stored [K,M]
// end prologue
// include lib/pointwise.wgsl
// include lib/matmul_operands.wgsl
// include lib/weights.wgsl
// include lib/store_row_1.wgsl
// include lib/broadcast_tile.wgsl
// include lib/broadcast_store.wgsl

fn tile_row(m: u32) -> u32 {
  return m;
}

// A[m..m+4][k + lane], or A[m + lane][k..k+4] where A is stored transposed.
fn read_rows(m: u32, k: u32, lane: u32) -> vec4<f32> {
  let along = vec4<u32>(0u, 1u, 2u, 3u);
  if (TRANSPOSE_A) {
    let i = a_base + m + lane + (k + along) * params.m;
    let v = vec4<f32>(f32(a[i.x]), f32(a[i.y]), f32(a[i.z]), f32(a[i.w]));
    return select(vec4<f32>(), v, vec4<bool>(!K_EDGE) | (k + along < vec4<u32>(params.k)));
  }
  let i = a_base + k + lane + (m + along) * params.k;
  let v = vec4<f32>(f32(a[i.x]), f32(a[i.y]), f32(a[i.z]), f32(a[i.w]));
  return select(vec4<f32>(), v, !K_EDGE || k + lane < params.k);
}

@compute @workgroup_size(4)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let tile = tile_at(flat_workgroup(id, count), 8u, 16u);
  if (tile.w == 0u) {
    return;
  }
  let m = tile.x;
  let n = tile.y;
  for (var k = tile.z; k < tile.w; k += 4u) {
    let upper = read_rows(m, k, lane);
    let lower = read_rows(m + 4u, k, lane);
    let rows = cut_k(weight_lanes(b_first, k, n, lane), k);
    if (TRANSPOSE_A) {
      multiply_rows(upper, lower, rows);
    } else {
      multiply(upper, lower, rows);
    }
  }
  store_tile(m, n, lane);
}
