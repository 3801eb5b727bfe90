// Reads for attention by tiles of lib/broadcast_tile.wgsl: operands are arrays of scalars, `at` are the places of four rows.
// rows: the lane's element of four rows of A. block: four channels of the lane's four columns of B, where B is stored transposed. lines: the
// lane's four columns of four rows of B.
const KEYS = 128u;
const ALONG = vec4<u32>(0u, 1u, 2u, 3u);

// Places of rows `first` to `first` + 3 of head h of the queries, or of the keys.
fn query_rows(b: u32, h: u32, first: u32) -> vec4<u32> {
  return vec4<u32>(query_at(b, h, first), query_at(b, h, first + 1u), query_at(b, h, first + 2u), query_at(b, h, first + 3u));
}

fn key_rows(b: u32, h: u32, first: u32) -> vec4<u32> {
  return vec4<u32>(key_at(b, h, first), key_at(b, h, first + 1u), key_at(b, h, first + 2u), key_at(b, h, first + 3u));
}

// include lib/cut_columns.wgsl

// Zero for channels beyond the head's end.
fn cut_block(x: mat4x4<f32>, d: u32) -> mat4x4<f32> {
  if (WIDE) {
    return x;
  }
  return cut_columns(x, d, params.head);
}

fn q_rows(at: vec4<u32>, inside: bool) -> vec4<f32> {
  return select(vec4<f32>(), vec4<f32>(f32(q[at.x]), f32(q[at.y]), f32(q[at.z]), f32(q[at.w])), inside);
}

fn q_block(at: vec4<u32>) -> mat4x4<f32> {
  return mat4x4<f32>(
    f32(q[at.x]), f32(q[at.y]), f32(q[at.z]), f32(q[at.w]),
    f32(q[at.x + 1u]), f32(q[at.y + 1u]), f32(q[at.z + 1u]), f32(q[at.w + 1u]),
    f32(q[at.x + 2u]), f32(q[at.y + 2u]), f32(q[at.z + 2u]), f32(q[at.w + 2u]),
    f32(q[at.x + 3u]), f32(q[at.y + 3u]), f32(q[at.z + 3u]), f32(q[at.w + 3u]),
  );
}

fn q_lines(at: vec4<u32>) -> mat4x4<f32> {
  return mat4x4<f32>(
    f32(q[at.x]), f32(q[at.x + 4u]), f32(q[at.x + 8u]), f32(q[at.x + 12u]),
    f32(q[at.y]), f32(q[at.y + 4u]), f32(q[at.y + 8u]), f32(q[at.y + 12u]),
    f32(q[at.z]), f32(q[at.z + 4u]), f32(q[at.z + 8u]), f32(q[at.z + 12u]),
    f32(q[at.w]), f32(q[at.w + 4u]), f32(q[at.w + 8u]), f32(q[at.w + 12u]),
  );
}

fn k_rows(at: vec4<u32>, inside: bool) -> vec4<f32> {
  return select(vec4<f32>(), vec4<f32>(f32(k[at.x]), f32(k[at.y]), f32(k[at.z]), f32(k[at.w])), inside);
}

fn k_block(at: vec4<u32>) -> mat4x4<f32> {
  return mat4x4<f32>(
    f32(k[at.x]), f32(k[at.y]), f32(k[at.z]), f32(k[at.w]),
    f32(k[at.x + 1u]), f32(k[at.y + 1u]), f32(k[at.z + 1u]), f32(k[at.w + 1u]),
    f32(k[at.x + 2u]), f32(k[at.y + 2u]), f32(k[at.z + 2u]), f32(k[at.w + 2u]),
    f32(k[at.x + 3u]), f32(k[at.y + 3u]), f32(k[at.z + 3u]), f32(k[at.w + 3u]),
  );
}

fn k_lines(at: vec4<u32>) -> mat4x4<f32> {
  return mat4x4<f32>(
    f32(k[at.x]), f32(k[at.x + 4u]), f32(k[at.x + 8u]), f32(k[at.x + 12u]),
    f32(k[at.y]), f32(k[at.y + 4u]), f32(k[at.y + 8u]), f32(k[at.y + 12u]),
    f32(k[at.z]), f32(k[at.z + 4u]), f32(k[at.z + 8u]), f32(k[at.z + 12u]),
    f32(k[at.w]), f32(k[at.w + 4u]), f32(k[at.w + 8u]), f32(k[at.w + 12u]),
  );
}

fn v_rows(at: vec4<u32>, inside: bool) -> vec4<f32> {
  return select(vec4<f32>(), vec4<f32>(f32(v[at.x]), f32(v[at.y]), f32(v[at.z]), f32(v[at.w])), inside);
}

fn v_block(at: vec4<u32>) -> mat4x4<f32> {
  return mat4x4<f32>(
    f32(v[at.x]), f32(v[at.y]), f32(v[at.z]), f32(v[at.w]),
    f32(v[at.x + 1u]), f32(v[at.y + 1u]), f32(v[at.z + 1u]), f32(v[at.w + 1u]),
    f32(v[at.x + 2u]), f32(v[at.y + 2u]), f32(v[at.z + 2u]), f32(v[at.w + 2u]),
    f32(v[at.x + 3u]), f32(v[at.y + 3u]), f32(v[at.z + 3u]), f32(v[at.w + 3u]),
  );
}

fn v_lines(at: vec4<u32>) -> mat4x4<f32> {
  return mat4x4<f32>(
    f32(v[at.x]), f32(v[at.x + 4u]), f32(v[at.x + 8u]), f32(v[at.x + 12u]),
    f32(v[at.y]), f32(v[at.y + 4u]), f32(v[at.y + 8u]), f32(v[at.y + 12u]),
    f32(v[at.z]), f32(v[at.z + 4u]), f32(v[at.z + 8u]), f32(v[at.z + 12u]),
    f32(v[at.w]), f32(v[at.w + 4u]), f32(v[at.w + 8u]), f32(v[at.w + 12u]),
  );
}

// What a lane keeps of up to two products of 8 rows: by part, row, and key (or query) or channel, of which the lane has every fourth.
var<private> kept: array<f32, 512>;
var<private> sums: array<f32, 4u * HEAD>;

// v belongs to keys g + lane + 4·(0, 1, 2, 3).
fn keep(part: u32, row: u32, g: u32, v: vec4<f32>) {
  let i = part * 256u + row * (KEYS / 4u) + g / 4u + ALONG;
  kept[i.x] = v.x;
  kept[i.y] = v.y;
  kept[i.z] = v.z;
  kept[i.w] = v.w;
}

// The same back.
fn kept_of(part: u32, row: u32, g: u32) -> vec4<f32> {
  let i = part * 256u + row * (KEYS / 4u) + g / 4u + ALONG;
  return vec4<f32>(kept[i.x], kept[i.y], kept[i.z], kept[i.w]);
}

// What was kept of key + lane for rows row … row + 3.
fn kept_rows(part: u32, row: u32, key: u32) -> vec4<f32> {
  let i = part * 256u + key / 4u + KEYS / 4u * (row + ALONG);
  return vec4<f32>(kept[i.x], kept[i.y], kept[i.z], kept[i.w]);
}

// Channels n … n + 15 of the sums as the tile, and back.
fn load_sums(part: u32, n: u32) {
  var y: array<vec4<f32>, 8>;
  for (var r = 0u; r < 8u; r++) {
    let i = part * 2u * HEAD + r * (HEAD / 4u) + n / 4u + ALONG;
    y[r] = vec4<f32>(sums[i.x], sums[i.y], sums[i.z], sums[i.w]);
  }
  set_tile(y);
}

fn save_sums(part: u32, n: u32) {
  var y = tile();
  for (var r = 0u; r < 8u; r++) {
    let i = part * 2u * HEAD + r * (HEAD / 4u) + n / 4u + ALONG;
    sums[i.x] = y[r].x;
    sums[i.y] = y[r].y;
    sums[i.z] = y[r].z;
    sums[i.w] = y[r].w;
  }
}

// A lane's element of a row of the sums.
fn sum_at(part: u32, row: u32, d: u32) -> f32 {
  return sums[part * 2u * HEAD + row * (HEAD / 4u) + d / 4u];
}
