// Stores four neighbours of a row of a row-major result by vec4: params.n is divisible by 4. Needs alias V = vec4<f32>, Y, y, y_base and epilogue. Rows from params.m on are dropped.
fn store_row(m: u32, n: u32, c: vec4<f32>) {
  if (m < params.m && n < params.n) {
    let i = y_base + m * params.n + n;
    y[i / 4u] = Y(epilogue(c, i, n));
  }
}
