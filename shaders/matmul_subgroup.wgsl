// C = A·B for software adapters with subgroups of 8 lanes (llvmpipe). A load there is one gather for each component, dear as 25
// multiply-adds, and a shuffle with a constant lane is one CPU instruction: so a subgroup computes 16x32 of C (8x32 where rows are few), four
// columns a lane, and each lane loads one column of A's 16x8 block, which the others get by shuffles: 48 gathers for 512 multiply-adds.
// include lib/index.wgsl
// prologue
alias A = vec4<f32>;
alias A4 = vec4<f32>;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const A_WIDE = true; // a's innermost dimension is divisible by 4, and A is a vec4
const K_EDGE = false; // k is not divisible by the step of the loop over it
const TRANSPOSE_A = false; // a is stored [K,M]
const ROWS = 16u; // of a tile: 8 or 16
// end prologue
// include lib/pointwise.wgsl
// include lib/matmul_operands.wgsl
// include lib/weights.wgsl
// include lib/store_block_4.wgsl

// A[m..m+4][k], zeros beyond the end of the sums.
fn read_column_a(m: u32, k: u32) -> vec4<f32> {
  let inside = !K_EDGE || k < params.k;
  if (TRANSPOSE_A) {
    return select(vec4<f32>(), read_a(a_base + k * params.m + m), inside);
  }
  let i = a_base + m * params.k + k;
  let column = vec4<f32>(
    vec4<f32>(A4(a[i])).x,
    vec4<f32>(A4(a[i + params.k])).x,
    vec4<f32>(A4(a[i + 2u * params.k])).x,
    vec4<f32>(A4(a[i + 3u * params.k])).x,
  );
  return select(vec4<f32>(), column, inside);
}

// Of the columns of A that lanes hold, those of lanes 0 to 3 or 4 to 7 as rows: column j is A[m + j][k..k+4].
fn first_lanes(column: vec4<f32>) -> mat4x4<f32> {
  return transpose(mat4x4<f32>(subgroupShuffle(column, 0u), subgroupShuffle(column, 1u), subgroupShuffle(column, 2u), subgroupShuffle(column, 3u)));
}

fn last_lanes(column: vec4<f32>) -> mat4x4<f32> {
  return transpose(mat4x4<f32>(subgroupShuffle(column, 4u), subgroupShuffle(column, 5u), subgroupShuffle(column, 6u), subgroupShuffle(column, 7u)));
}

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let tile = tile_at(flat_workgroup(id, count), ROWS, 32u);
  if (tile.w == 0u) {
    return;
  }
  let m = tile.x;
  let n = tile.y + lane * 4u;
  var c0 = mat4x4<f32>();
  var c1 = mat4x4<f32>();
  var c2 = mat4x4<f32>();
  var c3 = mat4x4<f32>();
  for (var k = tile.z; k < tile.w; k += 8u) {
    let a0 = read_column_a(m, k + lane);
    let a1 = read_column_a(m + 4u, k + lane);
    var a2: vec4<f32>;
    var a3: vec4<f32>;
    if (ROWS == 16u) {
      a2 = read_column_a(m + 8u, k + lane);
      a3 = read_column_a(m + 12u, k + lane);
    }
    let b0 = read_block_b(k, n);
    c0 += b0 * first_lanes(a0);
    c1 += b0 * first_lanes(a1);
    if (ROWS == 16u) {
      c2 += b0 * first_lanes(a2);
      c3 += b0 * first_lanes(a3);
    }
    let b1 = read_block_b(k + 4u, n);
    c0 += b1 * last_lanes(a0);
    c1 += b1 * last_lanes(a1);
    if (ROWS == 16u) {
      c2 += b1 * last_lanes(a2);
      c3 += b1 * last_lanes(a3);
    }
  }
  store_block(m, n, c0);
  store_block(m + 4u, n, c1);
  if (ROWS == 16u) {
    store_block(m + 8u, n, c2);
    store_block(m + 12u, n, c3);
  }
}
