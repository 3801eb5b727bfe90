// Convolution for software adapters with subgroups of 8 lanes (llvmpipe). A load there is one gather for each component, dear as 25
// multiply-adds, and a shuffle with a constant lane is one CPU instruction: so a subgroup computes 32 pixels of 16 channels, four pixels a
// lane, and each lane loads the filter of one of 8 source channels, which the others get by shuffles.
// include lib/index.wgsl
// prologue
alias X = vec4<f32>;
alias X4 = vec4<f32>;
alias Y = vec4<f32>;
alias V = vec4<f32>;
const X_WIDE = true; // the source's channels are divisible by 4, and X is a vec4
const CHANNEL_EDGE = false; // the source's channels are not divisible by 8
const GRADIENT = false; // the result is the gradient of the input
// end prologue
// include lib/pointwise.wgsl
// include lib/conv2d_operands.wgsl
// include lib/weights.wgsl
// include lib/store_row_4.wgsl
// include lib/subgroup_rows.wgsl

// The filter from source channel c to result channels n..n+4; `row` is from filter_row.
fn read_filter(row: u32, c: u32, n: u32) -> vec4<f32> {
  return select(vec4<f32>(), weights(row, c, n), !CHANNEL_EDGE || c < params.channels);
}

@compute @workgroup_size(8)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
  let i = flat_workgroup(id, count);
  let phases = select(1u, params.stride * params.stride, GRADIENT);
  let phase = i / (params.tiles_n * params.tiles_m) % phases;
  let slice = i / (params.tiles_n * params.tiles_m * phases);
  if (slice >= params.slices) {
    return;
  }
  let m = (i / params.tiles_n % params.tiles_m * 8u + lane) * 4u;
  let n = i % params.tiles_n * 16u;
  let taps = taps_of(phase);
  let pixels = pixels_at(m, phase);
  let first = slice * (params.slice_k / params.tap_k);
  let last = min(first + params.slice_k / params.tap_k, taps.count.x * taps.count.y);
  var c0 = mat4x4<f32>();
  var c1 = mat4x4<f32>();
  var c2 = mat4x4<f32>();
  var c3 = mat4x4<f32>();
  var tap = vec2<u32>(first / max(taps.count.y, 1u), first % max(taps.count.y, 1u));
  for (var t = first; t < last; t++) {
    let source = sources(pixels, tap);
    let row = filter_row(taps, tap);
    for (var c = 0u; c < params.channels; c += 8u) {
      let w0 = read_filter(row, c + lane, n);
      let w1 = read_filter(row, c + lane, n + 4u);
      let w2 = read_filter(row, c + lane, n + 8u);
      let w3 = read_filter(row, c + lane, n + 12u);
      let x0 = read_block_x(source, c);
      c0 += first_rows(w0) * x0;
      c1 += first_rows(w1) * x0;
      c2 += first_rows(w2) * x0;
      c3 += first_rows(w3) * x0;
      let x1 = read_block_x(source, c + 4u);
      c0 += last_rows(w0) * x1;
      c1 += last_rows(w1) * x1;
      c2 += last_rows(w2) * x1;
      c3 += last_rows(w3) * x1;
    }
    tap = select(vec2<u32>(tap.x, tap.y + 1u), vec2<u32>(tap.x + 1u, 0u), tap.y + 1u == taps.count.y);
  }
  y_base = slice * params.m * params.n;
  for (var j = 0u; j < 4u; j++) {
    let r = result_row(m + j, phase);
    store_row(r, n, c0[j]);
    store_row(r, n + 4u, c1[j]);
    store_row(r, n + 8u, c2[j]);
    store_row(r, n + 12u, c3[j]);
  }
}
