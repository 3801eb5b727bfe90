// Reductions over a workgroup of 64, in a fixed order. All invocations must call them together.
var<workgroup> lane_values: array<f32, 64>;

fn workgroup_sum(v: f32, lane: u32) -> f32 {
  lane_values[lane] = v;
  for (var half = 32u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) {
      lane_values[lane] += lane_values[lane + half];
    }
  }
  workgroupBarrier();
  let result = lane_values[0];
  // The next reduction overwrites the array.
  workgroupBarrier();
  return result;
}

fn workgroup_max(v: f32, lane: u32) -> f32 {
  lane_values[lane] = v;
  for (var half = 32u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) {
      lane_values[lane] = max(lane_values[lane], lane_values[lane + half]);
    }
  }
  workgroupBarrier();
  let result = lane_values[0];
  workgroupBarrier();
  return result;
}
