// Exact order statistics of |x| per row, by radix select: floats without their sign order as their bits do, so four passes over 8 bits each
// fix the bits of the element of rank `rank` from the top down; a fifth finds the next larger element, for quantiles between two ranks.
// One workgroup per row; only integers are added, so the order of the atomics does not matter.
// include lib/index.wgsl
// prologue
alias X = f32;
const COPIES = 1u;
// end prologue

struct Params {
  rows: u32,
  size: u32, // elements of a row
  rank: u32, // of the lower neighbour, from 0
  weight: f32, // of the upper neighbour
  low: f32, // the result is clamped to [low, high]
  high: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<X>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [rows]

const LANES = 256u; // one per digit

// Where invocations run at once, neighbours count in different copies: values of one size share their leading digits and would queue up.
var<workgroup> histogram: array<atomic<u32>, COPIES * 256u>; // [COPIES, LANES]
var<workgroup> counts: array<u32, 256>;
var<workgroup> digit: u32;
var<workgroup> below: u32; // elements with a smaller digit
var<workgroup> among: u32; // elements with this digit
var<workgroup> successor: atomic<u32>;

fn bits(at: u32) -> u32 {
  return bitcast<u32>(f32(x[at])) & 0x7fffffffu;
}

@compute @workgroup_size(256)
fn forward(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let flat = flat_workgroup(id, count);
  if (flat >= params.rows) {
    return;
  }
  let start = flat * params.size;
  var rank = params.rank; // among the elements that begin with `prefix`
  var prefix = 0u;
  for (var round = 0u; round < 4u; round++) {
    let shift = 24u - 8u * round;
    for (var c = 0u; c < COPIES; c++) {
      atomicStore(&histogram[c * LANES + lane], 0u);
    }
    workgroupBarrier();
    for (var i = lane; i < params.size; i += LANES) {
      let b = bits(start + i);
      // A shift by 32 would be one by 0.
      if (round == 0u || ((b ^ prefix) >> ((shift + 8u) & 31u)) == 0u) {
        atomicAdd(&histogram[(lane % COPIES) * LANES + ((b >> shift) & 255u)], 1u);
      }
    }
    workgroupBarrier();
    var own = 0u;
    for (var c = 0u; c < COPIES; c++) {
      own += atomicLoad(&histogram[c * LANES + lane]);
    }
    counts[lane] = own;
    workgroupBarrier();
    var smaller = 0u;
    for (var d = 0u; d < lane; d++) {
      smaller += counts[d];
    }
    // True for exactly one invocation.
    if (smaller <= rank && rank < smaller + own) {
      digit = lane;
      below = smaller;
      among = own;
    }
    workgroupBarrier();
    prefix |= digit << shift;
    rank -= below;
  }
  // `rank` counts among the elements equal to `prefix` now: unless it is the last of them, the next one is the same.
  if (lane == 0u) {
    atomicStore(&successor, select(prefix, 0x7f7fffffu, rank + 1u == among));
  }
  workgroupBarrier();
  for (var i = lane; i < params.size; i += LANES) {
    let b = bits(start + i);
    if (b > prefix) {
      atomicMin(&successor, b);
    }
  }
  workgroupBarrier();
  if (lane == 0u) {
    let a = bitcast<f32>(prefix);
    let b = bitcast<f32>(select(prefix, atomicLoad(&successor), params.weight > 0.0));
    // torch.lerp's two forms: each is exact at its own end.
    let value = select(b - (b - a) * (1.0 - params.weight), a + params.weight * (b - a), params.weight < 0.5);
    y[flat] = clamp(value, params.low, params.high);
  }
}
