// One invocation an element; x [N,H,W,C], w [R,S,C,K], stride 1.
struct Params { n: u32, h: u32, w: u32, c: u32, k: u32, r: u32, s: u32, pad: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> filter_: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn forward(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= params.n * params.h * params.w * params.k) { return; }
  let k = id.x % params.k;
  let column = id.x / params.k % params.w;
  let row = id.x / (params.k * params.w) % params.h;
  let image = id.x / (params.k * params.w * params.h);
  var sum = 0.0;
  for (var r = 0u; r < params.r; r++) {
    let from_row = i32(row + r) - i32(params.pad);
    if (from_row < 0 || from_row >= i32(params.h)) { continue; }
    for (var s = 0u; s < params.s; s++) {
      let from_column = i32(column + s) - i32(params.pad);
      if (from_column < 0 || from_column >= i32(params.w)) { continue; }
      let pixel = ((image * params.h + u32(from_row)) * params.w + u32(from_column)) * params.c;
      let tap = (r * params.s + s) * params.c;
      for (var c = 0u; c < params.c; c++) { sum += x[pixel + c] * filter_[(tap + c) * params.k + k]; }
    }
  }
  y[id.x] = sum;
}
