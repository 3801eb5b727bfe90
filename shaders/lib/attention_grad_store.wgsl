// Results of attention's gradient kernels.
@group(0) @binding(7) var<storage, read_write> dq: array<X>;
@group(0) @binding(8) var<storage, read_write> dk: array<X>;
@group(0) @binding(9) var<storage, read_write> dv: array<X>;

fn store_dq(row: u32, i: u32, d: u32, x: vec4<f32>) {
  if (row >= params.t || d >= params.head4) {
    return;
  }
  if (WIDE) {
    dq[i / 4u + d] = X(lanes(x.x, x.y, x.z, x.w));
    return;
  }
  for (var c = 0u; c < 4u && 4u * d + c < params.head; c++) {
    dq[i + 4u * d + c] = X(lanes(x[c], 0.0, 0.0, 0.0));
  }
}

fn store_dkv(key: u32, i: u32, d: u32, x: vec4<f32>, y: vec4<f32>) {
  if (key >= params.m || d >= params.head4) {
    return;
  }
  if (WIDE) {
    dk[i / 4u + d] = X(lanes(x.x, x.y, x.z, x.w));
    dv[i / 4u + d] = X(lanes(y.x, y.y, y.z, y.w));
    return;
  }
  for (var c = 0u; c < 4u && 4u * d + c < params.head; c++) {
    dk[i + 4u * d + c] = X(lanes(x[c], 0.0, 0.0, 0.0));
    dv[i + 4u * d + c] = X(lanes(y[c], 0.0, 0.0, 0.0));
  }
}
