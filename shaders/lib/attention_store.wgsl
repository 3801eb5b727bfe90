// Results of attention's forward kernels.
@group(0) @binding(5) var<storage, read_write> o: array<X>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>; // [B,heads,T], natural logarithm

fn store(row: u32, i: u32, d: u32, x: vec4<f32>) {
  if (row >= params.t || d >= params.head4) {
    return;
  }
  if (WIDE) {
    o[i / 4u + d] = X(lanes(x.x, x.y, x.z, x.w));
    return;
  }
  for (var c = 0u; c < 4u && 4u * d + c < params.head; c++) {
    o[i + 4u * d + c] = X(lanes(x[c], 0.0, 0.0, 0.0));
  }
}
