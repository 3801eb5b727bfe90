// GroupNorm (Wu & He 2018) with optional SiLU in one dispatch, channels last: x is [batch, pixels, channels]. A workgroup owns a few whole
// groups of one image, `columns` neighbouring channels: it reads them for their statistics and, out of the cache, once more to apply them.
// Lanes take neighbouring channels, and where there are more lanes than channels, strips of pixels.
// include lib/index.wgsl
// prologue
alias V = f32;
alias X = f32; // x and y
alias W = f32; // gamma
alias B = f32; // beta
const SILU = false;
const CELLS = 256u; // at least columns · strips
// end prologue
// include lib/pointwise.wgsl

struct Params {
  batch: u32,
  pixels: u32,
  channels: u32,
  groups: u32,
  columns: u32, // channels of a workgroup: whole groups
  blocks: u32, // workgroups of an image
  strips: u32, // parts of the pixels
  eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read> gamma: array<W>;
@group(0) @binding(3) var<storage, read> beta: array<B>;
// [batch, groups]
@group(0) @binding(4) var<storage, read_write> mean: array<f32>;
@group(0) @binding(5) var<storage, read_write> rstd: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<X>;

// epilogue
fn epilogue(v: V, i: u32, column: u32) -> V {
  return v;
}
// end epilogue

fn store(v: f32, at: u32, c: u32) {
  if (SILU) {
    y[at] = X(epilogue(silu(v), at, c));
  } else {
    y[at] = X(epilogue(v, at, c));
  }
}

override LANES = 256u;

// Mean and sum of squared deviations of each channel in each strip, [strips, columns].
var<workgroup> part_mean: array<f32, CELLS>;
var<workgroup> part_m2: array<f32, CELLS>;
// By group of the workgroup.
var<workgroup> group_mean: array<f32, CELLS>;
var<workgroup> group_rstd: array<f32, CELLS>;

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let w = flat_workgroup(id, count);
  if (w >= params.batch * params.blocks) {
    return;
  }
  let image = w / params.blocks;
  let begin = w % params.blocks * params.columns;
  let columns = min(params.columns, params.channels - begin);
  let size = params.channels / params.groups;
  let cells = params.columns * params.strips;
  let strip = (params.pixels + params.strips - 1u) / params.strips;
  for (var cell = lane; cell < cells; cell += LANES) {
    let column = cell % params.columns;
    let first = cell / params.columns * strip;
    if (column < columns && first < params.pixels) {
      let last = min(first + strip, params.pixels);
      var at = (image * params.pixels + first) * params.channels + begin + column;
      // About the strip's first pixel: E[x²] − E[x]² would lose every digit where |mean| is much larger than the deviation.
      let origin = f32(x[at]);
      var total = 0.0;
      var squares = 0.0;
      // Four pixels a turn: the loop costs a CPU as much as the sums. In bands, whose sums are added: one long sum would round more.
      let step = params.channels;
      for (var band = first; band < last; band += 256u) {
        var band_total = vec4<f32>();
        var band_squares = vec4<f32>();
        var p = band;
        let end = min(band + 256u, last);
        for (; p + 4u <= end; p += 4u) {
          let d = vec4<f32>(f32(x[at]), f32(x[at + step]), f32(x[at + 2u * step]), f32(x[at + 3u * step])) - origin;
          band_total += d;
          band_squares += d * d;
          at += 4u * step;
        }
        for (; p < end; p++) {
          let d = f32(x[at]) - origin;
          band_total.x += d;
          band_squares.x += d * d;
          at += step;
        }
        total += (band_total.x + band_total.y) + (band_total.z + band_total.w);
        squares += (band_squares.x + band_squares.y) + (band_squares.z + band_squares.w);
      }
      let offset = total / f32(last - first);
      part_mean[cell] = origin + offset;
      part_m2[cell] = max(squares - total * offset, 0.0);
    }
  }
  workgroupBarrier();
  // Chan et al. 1983: means weighted by count, then M2 = Σ M2ᵢ + nᵢ (meanᵢ − mean)².
  for (var g = lane; g < columns / size; g += LANES) {
    let elements = f32(params.pixels * size);
    let origin = part_mean[g * size];
    var total = 0.0;
    for (var s = 0u; s * strip < params.pixels; s++) {
      let weight = f32(min(strip, params.pixels - s * strip));
      for (var c = 0u; c < size; c++) {
        total += weight * (part_mean[s * params.columns + g * size + c] - origin);
      }
    }
    let center = origin + total / elements;
    var m2 = 0.0;
    for (var s = 0u; s * strip < params.pixels; s++) {
      let weight = f32(min(strip, params.pixels - s * strip));
      for (var c = 0u; c < size; c++) {
        let i = s * params.columns + g * size + c;
        let d = part_mean[i] - center;
        m2 += part_m2[i] + weight * d * d;
      }
    }
    let r = inverseSqrt(m2 / elements + params.eps);
    group_mean[g] = center;
    group_rstd[g] = r;
    let at = image * params.groups + begin / size + g;
    mean[at] = center;
    rstd[at] = r;
  }
  workgroupBarrier();
  for (var cell = lane; cell < cells; cell += LANES) {
    let column = cell % params.columns;
    let first = cell / params.columns * strip;
    if (column < columns && first < params.pixels) {
      let c = begin + column;
      let m = group_mean[column / size];
      let slope = f32(gamma[c]) * group_rstd[column / size];
      let offset = f32(beta[c]);
      var at = (image * params.pixels + first) * params.channels + c;
      let step = params.channels;
      let last = min(first + strip, params.pixels);
      var p = first;
      for (; p + 4u <= last; p += 4u) {
        // Not x·slope + (offset − mean·slope): that cancels where |mean| is large.
        let v = (vec4<f32>(f32(x[at]), f32(x[at + step]), f32(x[at + 2u * step]), f32(x[at + 3u * step])) - m) * slope + offset;
        store(v.x, at, c);
        store(v.y, at + step, c);
        store(v.z, at + 2u * step, c);
        store(v.w, at + 3u * step, c);
        at += 4u * step;
      }
      for (; p < last; p++) {
        store((f32(x[at]) - m) * slope + offset, at, c);
        at += step;
      }
    }
  }
}
