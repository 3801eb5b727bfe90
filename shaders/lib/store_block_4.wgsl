// Stores a 4x4 block of a row-major result by vec4: params.n is divisible by 4. Needs alias V = vec4<f32>, Y, y, y_base and epilogue.
// include lib/store_row_4.wgsl

fn store_block(m: u32, n: u32, c: mat4x4<f32>) {
  store_row(m, n, c[0]);
  store_row(m + 1u, n, c[1]);
  store_row(m + 2u, n, c[2]);
  store_row(m + 3u, n, c[3]);
}
