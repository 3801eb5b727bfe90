// Stores four neighbours of a row of a row-major result by elements, for any params.n. Needs alias V = f32, Y, y, y_base and epilogue. Rows from params.m on are dropped.
fn store_element(m: u32, n: u32, c: f32) {
  if (m < params.m && n < params.n) {
    let i = y_base + m * params.n + n;
    y[i] = Y(epilogue(c, i, n));
  }
}

fn store_row(m: u32, n: u32, c: vec4<f32>) {
  store_element(m, n, c.x);
  store_element(m, n + 1u, c.y);
  store_element(m, n + 2u, c.z);
  store_element(m, n + 3u, c.w);
}
