// Register tile of a matrix product: one invocation computes 16x16 of C as 4x4 named 4x4 matrices.
// Reads a quarter as much per product as 4x4; its 256 accumulators spill, which SwiftShader makes up for and which llvmpipe compiles for 10 s.
// In WGSL (P * Q)[j] is the sum over k of P[k] * Q[j][k]: with B's rows as columns of P and A's rows as columns of Q, `b * a` holds C's rows.
// The including shader provides
//   const TILE_STEP                              distance of the tile's blocks along m and n
//   fn stage_begins(k: u32) -> bool              whether stage is to be called before k is read
//   fn stage(k: u32)                             prepares the reads from k on (workgroup memory, addresses); called in uniform control flow
//   fn load_a(m: u32, k: u32) -> mat4x4<f32>     column j is A[m + j][k..k+4], 0 beyond K
//   fn load_b(k: u32, n: u32) -> mat4x4<f32>     column j is B[k + j][n..n+4], 0 beyond K
//   fn store_block(m: u32, n: u32, c: mat4x4<f32>)  column j is C[m + j][n..n+4]; drops what lies outside
const TILE_BLOCKS = 4u;

fn compute_tile(m: u32, n: u32, k_begin: u32, k_end: u32) {
  var c00 = mat4x4<f32>();
  var c01 = mat4x4<f32>();
  var c02 = mat4x4<f32>();
  var c03 = mat4x4<f32>();
  var c10 = mat4x4<f32>();
  var c11 = mat4x4<f32>();
  var c12 = mat4x4<f32>();
  var c13 = mat4x4<f32>();
  var c20 = mat4x4<f32>();
  var c21 = mat4x4<f32>();
  var c22 = mat4x4<f32>();
  var c23 = mat4x4<f32>();
  var c30 = mat4x4<f32>();
  var c31 = mat4x4<f32>();
  var c32 = mat4x4<f32>();
  var c33 = mat4x4<f32>();
  for (var k = k_begin; k < k_end; k += 4u) {
    if (stage_begins(k)) {
      stage(k);
    }
    let b0 = load_b(k, n);
    let b1 = load_b(k, n + TILE_STEP);
    let b2 = load_b(k, n + 2u * TILE_STEP);
    let b3 = load_b(k, n + 3u * TILE_STEP);
    let a0 = load_a(m, k);
    c00 += b0 * a0;
    c01 += b1 * a0;
    c02 += b2 * a0;
    c03 += b3 * a0;
    let a1 = load_a(m + TILE_STEP, k);
    c10 += b0 * a1;
    c11 += b1 * a1;
    c12 += b2 * a1;
    c13 += b3 * a1;
    let a2 = load_a(m + 2u * TILE_STEP, k);
    c20 += b0 * a2;
    c21 += b1 * a2;
    c22 += b2 * a2;
    c23 += b3 * a2;
    let a3 = load_a(m + 3u * TILE_STEP, k);
    c30 += b0 * a3;
    c31 += b1 * a3;
    c32 += b2 * a3;
    c33 += b3 * a3;
  }
  store_block(m, n, c00);
  store_block(m, n + TILE_STEP, c01);
  store_block(m, n + 2u * TILE_STEP, c02);
  store_block(m, n + 3u * TILE_STEP, c03);
  store_block(m + TILE_STEP, n, c10);
  store_block(m + TILE_STEP, n + TILE_STEP, c11);
  store_block(m + TILE_STEP, n + 2u * TILE_STEP, c12);
  store_block(m + TILE_STEP, n + 3u * TILE_STEP, c13);
  store_block(m + 2u * TILE_STEP, n, c20);
  store_block(m + 2u * TILE_STEP, n + TILE_STEP, c21);
  store_block(m + 2u * TILE_STEP, n + 2u * TILE_STEP, c22);
  store_block(m + 2u * TILE_STEP, n + 3u * TILE_STEP, c23);
  store_block(m + 3u * TILE_STEP, n, c30);
  store_block(m + 3u * TILE_STEP, n + TILE_STEP, c31);
  store_block(m + 3u * TILE_STEP, n + 2u * TILE_STEP, c32);
  store_block(m + 3u * TILE_STEP, n + 3u * TILE_STEP, c33);
}
