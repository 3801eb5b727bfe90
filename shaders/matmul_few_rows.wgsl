// C = A·B for software adapters where C has few rows: an invocation computes 1, 2 or 4 rows of 8 columns, so that nothing is loaded or multiplied
// for rows that are not there. B, of which each element is loaded for one tile alone, sets the time.
// include lib/index.wgsl
// prologue
alias A = vec4<f32>;
alias A4 = vec4<f32>;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const A_WIDE = true; // a is stored [M,K], k is divisible by 4, and A is a vec4
const K_EDGE = false; // k is not divisible by 4
const TRANSPOSE_A = false; // a is stored [K,M]
const ROWS = 4u; // of a tile: 1, 2 or 4
// end prologue
// include lib/pointwise.wgsl
// include lib/matmul_operands.wgsl
// include lib/weights.wgsl
// include lib/store_row_4.wgsl

// A[m][k..k+4], zeros beyond the end of the sums.
fn read_row(m: u32, k: u32) -> vec4<f32> {
  let along = vec4<u32>(0u, 1u, 2u, 3u);
  var v: vec4<f32>;
  if (TRANSPOSE_A) {
    let i = vec4<u32>(a_base + m) + (k + along) * params.m;
    v = vec4<f32>(vec4<f32>(A4(a[i.x])).x, vec4<f32>(A4(a[i.y])).x, vec4<f32>(A4(a[i.z])).x, vec4<f32>(A4(a[i.w])).x);
  } else {
    v = read_a(a_base + m * params.k + k);
  }
  return select(vec4<f32>(), v, vec4<bool>(!K_EDGE) | (k + along < vec4<u32>(params.k)));
}

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let tile = tile_at(flat_workgroup(id, count) * 8u + lane, ROWS, 8u);
  if (tile.w == 0u) {
    return;
  }
  let m = tile.x;
  let n = tile.y;
  // Rows of C, the first and the last four of the columns.
  var c0: mat2x4<f32>;
  var c1: mat2x4<f32>;
  var c2: mat2x4<f32>;
  var c3: mat2x4<f32>;
  for (var k = tile.z; k < tile.w; k += 4u) {
    let b0 = read_block_b(k, n);
    let b1 = read_block_b(k, n + 4u);
    let a0 = read_row(m, k);
    c0 += mat2x4<f32>(b0 * a0, b1 * a0);
    if (ROWS >= 2u) {
      let a1 = read_row(m + 1u, k);
      c1 += mat2x4<f32>(b0 * a1, b1 * a1);
    }
    if (ROWS == 4u) {
      let a2 = read_row(m + 2u, k);
      c2 += mat2x4<f32>(b0 * a2, b1 * a2);
      let a3 = read_row(m + 3u, k);
      c3 += mat2x4<f32>(b0 * a3, b1 * a3);
    }
  }
  var c = array<mat2x4<f32>, 4>(c0, c1, c2, c3);
  for (var r = 0u; r < ROWS; r++) {
    store_row(m + r, n, c[r][0]);
    store_row(m + r, n + 4u, c[r][1]);
  }
}
