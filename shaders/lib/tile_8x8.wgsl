// Register tile of a matrix product: one invocation computes 8x8 of C as 2x2 named 4x4 matrices.
// Reads half as much per product as 4x4.
// In WGSL (P * Q)[j] is the sum over k of P[k] * Q[j][k]: with B's rows as columns of P and A's rows as columns of Q, `b * a` holds C's rows.
// The including shader provides
//   const TILE_STEP                              distance of the tile's blocks along m and n
//   fn stage_begins(k: u32) -> bool              whether stage is to be called before k is read
//   fn stage(k: u32)                             prepares the reads from k on (workgroup memory, addresses); called in uniform control flow
//   fn load_a(m: u32, k: u32) -> mat4x4<f32>     column j is A[m + j][k..k+4], 0 beyond K
//   fn load_b(k: u32, n: u32) -> mat4x4<f32>     column j is B[k + j][n..n+4], 0 beyond K
//   fn store_block(m: u32, n: u32, c: mat4x4<f32>)  column j is C[m + j][n..n+4]; drops what lies outside
const TILE_BLOCKS = 2u;

fn compute_tile(m: u32, n: u32, k_begin: u32, k_end: u32) {
  var c00 = mat4x4<f32>();
  var c01 = mat4x4<f32>();
  var c10 = mat4x4<f32>();
  var c11 = mat4x4<f32>();
  for (var k = k_begin; k < k_end; k += 4u) {
    if (stage_begins(k)) {
      stage(k);
    }
    let b0 = load_b(k, n);
    let b1 = load_b(k, n + TILE_STEP);
    let a0 = load_a(m, k);
    c00 += b0 * a0;
    c01 += b1 * a0;
    let a1 = load_a(m + TILE_STEP, k);
    c10 += b0 * a1;
    c11 += b1 * a1;
  }
  store_block(m, n, c00);
  store_block(m, n + TILE_STEP, c01);
  store_block(m + TILE_STEP, n, c10);
  store_block(m + TILE_STEP, n + TILE_STEP, c11);
}
