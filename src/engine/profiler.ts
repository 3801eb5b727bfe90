/**
 * Where a program's time goes: every dispatch in a compute pass of its own between two timestamps, several replays, median by dispatch.
 * Passes of their own cost a little more than the single pass of `run`, so shares are what to read, not the sum.
 */
import type { Peak } from './peak';
import type { Program } from './program';

export interface ProfileStep {
  /** `layer path:op`, as in errors and captures. */
  readonly label: string;
  /** Name of the op. */
  readonly op: string;
  /** Path of the layer, as in the checkpoint. */
  readonly path: string;
  /** Entry point and file of the kernel, `conv2d.wgsl:forward`. */
  readonly kernel: string;
  readonly flops: number;
  /** Least traffic: each operand and result once. */
  readonly bytes: number;
  /** Nanoseconds; start is counted from the first dispatch of the replay with the median total. Absent without timestamps. */
  readonly time: { readonly min: number; readonly median: number; readonly start: number } | undefined;
}

export interface Profile {
  readonly adapter: string;
  readonly steps: readonly ProfileStep[];
  readonly runs: number;
  /** Nanoseconds of one replay, median: the sum of its dispatches, or wall time without timestamps. */
  readonly total: number;
  /** Why there are no times by dispatch. */
  readonly note: string | undefined;
}

export interface ProfileOptions {
  /** Timed replays; one more runs first untimed. Default 10. */
  readonly runs?: number;
}

/** WebGPU's largest query set. */
const MAX_QUERIES = 4096;

/**
 * Times a program. Its inputs must have been written; it runs `runs + 1` times, so state that it mutates (a training step) moves on.
 * Without the `timestamp-query` feature only whole replays are timed, and `note` says so.
 */
export async function profile(program: Program, { runs = 10 }: ProfileOptions = {}): Promise<Profile> {
  const { engine } = program;
  program.run();
  await program.done();
  const timed = engine.profile.timestamps ? await timeDispatches(program, runs) : undefined;
  const totals = timed ? timed.map(({ durations }) => durations.reduce((a, b) => a + b, 0)) : await timeReplays(program, runs);
  const total = median(totals);
  // The replay closest to the median total places the dispatches on the trace's time axis.
  const typical = timed?.[totals.indexOf(totals.reduce((best, t) => (Math.abs(t - total) < Math.abs(best - total) ? t : best)))];
  const steps = program.steps.map((s, i): ProfileStep => {
    const durations = timed?.map((run) => run.durations[i]!);
    return {
      label: s.label,
      op: s.node.op.name,
      path: s.node.path,
      kernel: `${s.info.file}:${s.info.entry}`,
      flops: s.cost.flops,
      bytes: s.cost.bytes,
      time: durations && { min: Math.min(...durations), median: median(durations), start: typical!.starts[i]! },
    };
  });
  return {
    adapter: engine.profile.name,
    steps,
    runs,
    total,
    note: timed ? undefined : `${engine.profile.name} has no timestamp-query: only whole replays were timed.`,
  };
}

interface TimedRun {
  readonly starts: number[];
  readonly durations: number[];
}

async function timeDispatches(program: Program, runs: number): Promise<TimedRun[]> {
  const { engine, steps } = program;
  const { device } = engine;
  const perSet = MAX_QUERIES / 2;
  const chunks = Array.from({ length: Math.ceil(steps.length / perSet) }, (_, i) => steps.slice(i * perSet, (i + 1) * perSet));
  const sets = chunks.map((chunk) => device.createQuerySet({ label: 'profile', type: 'timestamp', count: 2 * chunk.length }));
  const resolved = engine.createBuffer('profile.timestamps', Math.max(1, steps.length) * 16 + 256 * chunks.length, 512 | 4); // QUERY_RESOLVE | COPY_SRC
  try {
    const result: TimedRun[] = [];
    for (let run = 0; run < runs; run++) {
      let at = 0;
      const offsets: number[] = [];
      for (const [c, chunk] of chunks.entries()) {
        const encoder = device.createCommandEncoder();
        chunk.forEach((s, i) => {
          const pass = encoder.beginComputePass({ label: s.label, timestampWrites: { querySet: sets[c]!, beginningOfPassWriteIndex: 2 * i, endOfPassWriteIndex: 2 * i + 1 } });
          pass.setPipeline(s.pipeline);
          pass.setBindGroup(0, s.bindGroup, s.offsets);
          pass.dispatchWorkgroups(s.workgroups[0], s.workgroups[1]);
          pass.end();
        });
        encoder.resolveQuerySet(sets[c]!, 0, 2 * chunk.length, resolved, at);
        device.queue.submit([encoder.finish()]);
        offsets.push(at);
        at = Math.ceil((at + chunk.length * 16) / 256) * 256;
      }
      const raw = new BigUint64Array(await engine.readBuffer({ buffer: resolved, offset: 0 }, Math.max(16, at)));
      result.push(readRun(raw, offsets, chunks.map((chunk) => chunk.length)));
    }
    return result;
  } finally {
    for (const set of sets) set.destroy();
    engine.destroyBuffer(resolved);
  }
}

function readRun(raw: BigUint64Array, offsets: readonly number[], lengths: readonly number[]): TimedRun {
  const starts: number[] = [];
  const durations: number[] = [];
  const first = raw[0]!;
  offsets.forEach((offset, c) => {
    for (let i = 0; i < lengths[c]!; i++) {
      const [begin, end] = [raw[offset / 8 + 2 * i]!, raw[offset / 8 + 2 * i + 1]!];
      starts.push(Number(begin - first));
      // Counters of some drivers step back between passes; such a dispatch counts as too short to see.
      durations.push(end > begin ? Number(end - begin) : 0);
    }
  });
  return { starts, durations };
}

async function timeReplays(program: Program, runs: number): Promise<number[]> {
  const totals: number[] = [];
  for (let run = 0; run < runs; run++) {
    const start = performance.now();
    program.run();
    await program.done();
    totals.push((performance.now() - start) * 1e6);
  }
  return totals;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** A table by op, dearest first: time and its share, arithmetic and traffic, and, given `peak`, the share of what the adapter can do. */
export function profileTable(profile: Profile, peak?: Peak): string {
  const groups = new Map<string, { count: number; time: number; flops: number; bytes: number }>();
  for (const s of profile.steps) {
    const g = groups.get(s.op) ?? { count: 0, time: 0, flops: 0, bytes: 0 };
    groups.set(s.op, { count: g.count + 1, time: g.time + (s.time?.median ?? 0), flops: g.flops + s.flops, bytes: g.bytes + s.bytes });
  }
  const all = { count: 0, time: profile.total, flops: 0, bytes: 0 };
  for (const g of groups.values()) {
    all.count += g.count;
    all.flops += g.flops;
    all.bytes += g.bytes;
  }
  const rows = [...groups].sort(([, a], [, b]) => b.time - a.time || b.flops - a.flops);
  const perSecond = (amount: number, ns: number) => (ns > 0 ? amount / ns : undefined); // per ns = G per second
  const line = (name: string, g: typeof all, timed: boolean) => {
    const [gflops, gbytes] = timed ? [perSecond(g.flops, g.time), perSecond(g.bytes, g.time)] : [];
    return [
      name,
      String(g.count),
      timed ? (g.time / 1e6).toFixed(3) : '',
      timed && profile.total > 0 ? percent(g.time / profile.total) : '',
      (g.flops / 1e9).toFixed(3),
      (g.bytes / 1e6).toFixed(2),
      gflops?.toFixed(2) ?? '',
      gbytes?.toFixed(2) ?? '',
      peak && gflops !== undefined ? percent((gflops * 1e9) / peak.f32) : '',
      peak && gbytes !== undefined ? percent((gbytes * 1e9) / peak.bandwidth) : '',
    ];
  };
  const table = [
    ['op', 'calls', 'ms', 'share', 'GFLOP', 'MB', 'GFLOP/s', 'GB/s', 'of peak', 'of copy'],
    ...rows.map(([name, g]) => line(name, g, profile.note === undefined)),
    line('all', all, true),
  ];
  const head = `${profile.adapter}: ${profile.steps.length} dispatches, median of ${profile.runs} replays`;
  const against = peak && `peak ${(peak.f32 / 1e9).toFixed(1)} GFLOP/s f32, copy ${(peak.bandwidth / 1e9).toFixed(1)} GB/s`;
  return [head, ...(against ? [against] : []), ...(profile.note ? [profile.note] : []), '', formatTable(table)].join('\n');
}

const percent = (share: number): string => `${(100 * share).toFixed(1)}%`;

/** Columns padded to their widest cell: the first to the left, the others to the right. */
export function formatTable(rows: readonly (readonly string[])[], leftColumns = 1): string {
  const widths = rows[0]!.map((_, c) => Math.max(...rows.map((r) => r[c]!.length)));
  return rows.map((r) => r.map((cell, c) => (c < leftColumns ? cell.padEnd(widths[c]!) : cell.padStart(widths[c]!))).join('  ').trimEnd()).join('\n');
}

/**
 * The typical replay in Chrome's trace-event format, for chrome://tracing and ui.perfetto.dev: one complete event a dispatch,
 * with layer, kernel, flops and bytes as arguments. Without timestamps, one event for the whole replay.
 */
export function chromeTrace(profile: Profile): object {
  const common = { ph: 'X', pid: 1, tid: 1 } as const;
  const events = profile.note
    ? [{ ...common, name: 'replay', cat: 'program', ts: 0, dur: profile.total / 1e3, args: { note: profile.note } }]
    : profile.steps.map((s) => ({
        ...common,
        name: s.op,
        cat: s.path || 'graph',
        ts: s.time!.start / 1e3, // microseconds
        dur: s.time!.median / 1e3,
        args: { path: s.path, kernel: s.kernel, flops: s.flops, bytes: s.bytes, gflops_per_s: s.time!.median > 0 ? s.flops / s.time!.median : null, min_us: s.time!.min / 1e3 },
      }));
  return {
    displayTimeUnit: 'ms',
    otherData: { adapter: profile.adapter, replays: profile.runs },
    traceEvents: [
      { ph: 'M', pid: 1, name: 'process_name', args: { name: profile.adapter } },
      { ph: 'M', pid: 1, tid: 1, name: 'thread_name', args: { name: 'compute passes' } },
      ...events,
    ],
  };
}
