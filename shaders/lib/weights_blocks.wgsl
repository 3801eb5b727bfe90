// The second operand of a product quantised in blocks of 32 numbers along the reduction that share an f32 scale: see lib/weights.wgsl. Rows lie in
// bands of 32: a band begins with one scale for each column, and then come the levels of its rows, packed in row order. A weight is scale times
// level. Rows are divisible by 4, and so are `first` and k where a block of four rows is read.
// The levels of a table, which is never summed along its columns, share scales along its rows: it is stored like a matrix of one column.
// include lib/unpack_int8.wgsl

@group(0) @binding(2) var<storage, read> w: array<u32>;

fn table(i: u32) -> vec4<f32> {
  let band = i / 32u * BAND_WORDS;
  return bitcast<f32>(w[band]) * levels(band + 1u, i % 32u);
}

// Scales of columns n..n+4 of the band that begins at word `band`.
fn scales(band: u32, n: u32) -> vec4<f32> {
  let i = band + n;
  return bitcast<vec4<f32>>(vec4<u32>(w[i], w[i + 1u], w[i + 2u], w[i + 3u]));
}

fn weights(first: u32, k: u32, n: u32) -> vec4<f32> {
  let row = first + k;
  let band = row / 32u * BAND_WORDS * params.n;
  return scales(band, n) * levels(band + params.n, row % 32u * params.n + n);
}

fn weight_block(first: u32, k: u32, n: u32) -> mat4x4<f32> {
  let row = first + k;
  let band = row / 32u * BAND_WORDS * params.n;
  let scale = scales(band, n);
  let base = band + params.n;
  let i = row % 32u * params.n + n;
  return mat4x4<f32>(
    scale * levels(base, i),
    scale * levels(base, i + params.n),
    scale * levels(base, i + 2u * params.n),
    scale * levels(base, i + 3u * params.n),
  );
}

// Neighbouring lanes load neighbouring words of four levels.
fn lane_column(lane: u32, j: u32) -> u32 {
  return lane * 4u + j;
}

fn weight_lanes(first: u32, k: u32, n: u32, lane: u32) -> mat4x4<f32> {
  return weight_block(first, k, n + lane * 4u);
}
