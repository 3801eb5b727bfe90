// Register tile of a matrix product: one invocation computes 4x4 of C as one 4x4 matrix.
// For small results: most invocations.
// In WGSL (P * Q)[j] is the sum over k of P[k] * Q[j][k]: with B's rows as columns of P and A's rows as columns of Q, `b * a` holds C's rows.
// The including shader provides
//   const TILE_STEP                              distance of the tile's blocks along m and n
//   fn stage_begins(k: u32) -> bool              whether stage is to be called before k is read
//   fn stage(k: u32)                             prepares the reads from k on (workgroup memory, addresses); called in uniform control flow
//   fn load_a(m: u32, k: u32) -> mat4x4<f32>     column j is A[m + j][k..k+4], 0 beyond K
//   fn load_b(k: u32, n: u32) -> mat4x4<f32>     column j is B[k + j][n..n+4], 0 beyond K
//   fn store_block(m: u32, n: u32, c: mat4x4<f32>)  column j is C[m + j][n..n+4]; drops what lies outside
const TILE_BLOCKS = 1u;

fn compute_tile(m: u32, n: u32, k_begin: u32, k_end: u32) {
  var c00 = mat4x4<f32>();
  for (var k = k_begin; k < k_end; k += 4u) {
    if (stage_begins(k)) {
      stage(k);
    }
    let b0 = load_b(k, n);
    let a0 = load_a(m, k);
    c00 += b0 * a0;
  }
  store_block(m, n, c00);
}
