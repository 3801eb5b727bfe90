// Register tile of a matrix product: an invocation computes up to 16x8 of C in named 4x4 matrices, c<block row><block column>.
// In WGSL (P * Q)[j] is the sum over k of P[k] * Q[j][k]: with B's rows as columns of P and A's rows as columns of Q, `b * a` holds C's rows.
// The including shader provides store_row (lib/store_row_4.wgsl) and
//   fn tile_row(m: u32) -> u32                   row of the stored result, beyond params.m where there is none
var<private> c00: mat4x4<f32>;
var<private> c01: mat4x4<f32>;
var<private> c10: mat4x4<f32>;
var<private> c11: mat4x4<f32>;
var<private> c20: mat4x4<f32>;
var<private> c21: mat4x4<f32>;
var<private> c30: mat4x4<f32>;
var<private> c31: mat4x4<f32>;

// Stores the tile's rows from `m` and columns from `n` on. A loop, so that the epilogue is compiled once.
fn store_blocks(m: u32, n: u32, height: u32, width: u32) {
  var c = array<mat4x4<f32>, 8>(c00, c01, c10, c11, c20, c21, c30, c31);
  for (var r = 0u; r < height; r++) {
    let row = tile_row(m + r);
    for (var j = 0u; j < width; j += 4u) {
      store_row(row, n + j, c[r / 4u * 2u + j / 4u][r % 4u]);
    }
  }
}
