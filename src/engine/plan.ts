/** Memory plan: which values share a buffer. Pure; tested without a device. */

export interface MemoryRequest {
  readonly bytes: number;
  /** Positions of the first and last node that touch it, inclusive. */
  readonly first: number;
  readonly last: number;
}

export interface MemoryPlan {
  /** Size of each shared buffer. */
  readonly slots: readonly number[];
  /** Slot of each request. */
  readonly assignment: readonly number[];
  readonly plannedBytes: number;
  /** Bytes if nothing shared memory. */
  readonly naiveBytes: number;
  /** Bytes alive at the worst moment: no plan can need less. */
  readonly peakLiveBytes: number;
}

/**
 * Greedy by size (Pisarchyk & Lee 2020, arXiv:2001.03288, "shared objects"): the largest value first, each into the smallest buffer
 * that is free during its whole life, else into a new one.
 *
 * Values share whole buffers, not ranges of one slab: WebGPU tracks usage by buffer, and a buffer both read and written in one
 * dispatch is an error even where the ranges are apart.
 */
export function planMemory(requests: readonly MemoryRequest[]): MemoryPlan {
  const slots: { bytes: number; lives: { first: number; last: number }[] }[] = [];
  const assignment = new Array<number>(requests.length).fill(-1);
  const order = requests.map((_, i) => i).sort((a, b) => requests[b]!.bytes - requests[a]!.bytes || requests[a]!.first - requests[b]!.first);
  for (const i of order) {
    const r = requests[i]!;
    let best = -1;
    slots.forEach((slot, s) => {
      const free = slot.lives.every((l) => l.last < r.first || r.last < l.first);
      if (free && (best < 0 || slot.bytes < slots[best]!.bytes)) best = s;
    });
    if (best < 0) best = slots.push({ bytes: r.bytes, lives: [] }) - 1;
    slots[best]!.lives.push({ first: r.first, last: r.last });
    assignment[i] = best;
  }
  return {
    slots: slots.map((s) => s.bytes),
    assignment,
    plannedBytes: slots.reduce((n, s) => n + s.bytes, 0),
    naiveBytes: requests.reduce((n, r) => n + r.bytes, 0),
    peakLiveBytes: peakLive(requests),
  };
}

function peakLive(requests: readonly MemoryRequest[]): number {
  const change = new Map<number, number>();
  for (const r of requests) {
    change.set(r.first, (change.get(r.first) ?? 0) + r.bytes);
    change.set(r.last + 1, (change.get(r.last + 1) ?? 0) - r.bytes);
  }
  let live = 0;
  let peak = 0;
  for (const at of [...change.keys()].sort((a, b) => a - b)) {
    live += change.get(at)!;
    peak = Math.max(peak, live);
  }
  return peak;
}
