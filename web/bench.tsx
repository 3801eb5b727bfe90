/** The Bench tab. */
import { useSignal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { Field, message, Problem, Progress, save, Slider } from './components';
import { adapter, answering, callback, startThread, type Remote, type Thread } from './engine';
import type { BenchWorker, EngineEntry, Measured, RowInfo } from './worker/bench';

let thread: Thread<BenchWorker> | undefined;
const bench = (): Remote<BenchWorker> => (thread ??= startThread<BenchWorker>('bench.js', 'bench')).remote;

interface Peak {
  readonly f32: number;
  readonly bandwidth: number;
}

const ms = (x: number): string => (x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x.toPrecision(3));

/** Rows that take a moment on any GPU; the others are for those who ask. */
const usual = ['matmul-512', 'conv-3x3-1x128-128x32', 'conv-1x1-1x256-256x32', 'gn-silu-4x128x32', 'attention-8x256x64', 'unet-1', 'train-4'];

function Roofline({ rows, results, peak }: { rows: readonly RowInfo[]; results: readonly Measured[]; peak: Peak }) {
  const points = rows.flatMap((row) => {
    const found = results.find((m) => m.row === row.id && m.engine === 'bruit');
    return found?.ms && row.bytes ? [{ row, intensity: row.flops / row.bytes, rate: row.flops / (found.ms / 1e3) }] : [];
  });
  const [width, height] = [640, 300];
  const [x0, x1] = [0.3, 1000];
  const [y1, y0] = [peak.f32 * 2, Math.min(peak.f32 / 1e4, ...points.map((p) => p.rate / 2))];
  const x = (v: number) => 56 + (Math.log(v / x0) / Math.log(x1 / x0)) * (width - 70);
  const y = (v: number) => height - 34 - (Math.log(v / y0) / Math.log(y1 / y0)) * (height - 50);
  const ridge = peak.f32 / peak.bandwidth;
  const decades = (from: number, to: number) => Array.from({ length: Math.floor(Math.log10(to)) - Math.ceil(Math.log10(from)) + 1 }, (_, i) => 10 ** (Math.ceil(Math.log10(from)) + i));
  return (
    <figure>
      <svg class="roofline" viewBox={`0 0 ${width} ${height}`} role="img" aria-label="Roofline: arithmetic rate by arithmetic intensity">
        {decades(x0, x1).map((v) => (
          <g key={v}>
            <line x1={x(v)} x2={x(v)} y1={y(y1)} y2={y(y0)} class="grid" />
            <text x={x(v)} y={height - 18} text-anchor="middle">
              {v}
            </text>
          </g>
        ))}
        {decades(y0, y1).map((v) => (
          <g key={v}>
            <line x1={x(x0)} x2={x(x1)} y1={y(v)} y2={y(v)} class="grid" />
            <text x={50} y={y(v) + 4} text-anchor="end">
              {v >= 1e12 ? `${v / 1e12} T` : v >= 1e9 ? `${v / 1e9} G` : `${v / 1e6} M`}
            </text>
          </g>
        ))}
        <path class="roof" d={`M${x(x0)},${y(Math.max(peak.bandwidth * x0, y0))} L${x(ridge)},${y(peak.f32)} L${x(x1)},${y(peak.f32)}`} />
        {points.map(({ row, intensity, rate }) => (
          <g key={row.id}>
            <circle cx={x(intensity)} cy={y(rate)} r={4.5}>
              <title>
                {row.name}: {(rate / 1e9).toPrecision(3)} Gflop/s at {intensity.toPrecision(3)} flop a byte
              </title>
            </circle>
            <text x={x(intensity) + 8} y={y(rate) + 14}>
              {row.name.replace(/,.*/, '')}
            </text>
          </g>
        ))}
        <text x={width / 2} y={height - 3} text-anchor="middle">
          flop a byte
        </text>
      </svg>
      <figcaption>
        flop/s of bruit's kernels under the roof that this adapter was measured to have: {(peak.f32 / 1e9).toPrecision(3)} Gflop/s, {(peak.bandwidth / 1e9).toPrecision(3)} GB/s.
      </figcaption>
    </figure>
  );
}

export function Bench() {
  const rows = useSignal<readonly RowInfo[]>([]);
  const engines = useSignal<readonly EngineEntry[]>([]);
  const chosen = useSignal<ReadonlySet<string>>(new Set(usual));
  const racing = useSignal<ReadonlySet<string>>(new Set());
  const seconds = useSignal(1);
  const results = useSignal<readonly Measured[]>([]);
  const peak = useSignal<Peak | undefined>(undefined);
  const running = useSignal(false);
  const copied = useSignal(false);
  const problem = useSignal('');

  useEffect(() => {
    void (async () => {
      try {
        rows.value = await bench().rows();
        engines.value = await bench().engines();
        racing.value = new Set(engines.value.map((e) => e.name));
      } catch (e) {
        problem.value = message(e);
      }
    })();
  }, []);

  const toggle = (set: ReadonlySet<string>, key: string): ReadonlySet<string> => new Set(set.has(key) ? [...set].filter((k) => k !== key) : [...set, key]);
  const run = async (): Promise<void> => {
    running.value = true;
    problem.value = '';
    results.value = [];
    try {
      const entries = engines.value.filter((e) => racing.value.has(e.name) || e.name === 'bruit');
      peak.value = await bench().peak(entries[0]!);
      await bench().run(
        rows.value.filter((r) => chosen.value.has(r.id)).map((r) => r.id),
        entries,
        seconds.value,
        callback((m: Measured) => void (results.value = [...results.value, m])),
      );
    } catch (e) {
      problem.value = message(e);
    } finally {
      running.value = false;
    }
  };
  const stop = async (): Promise<void> => {
    const { stop: ask } = bench();
    await answering(thread!, ask, (why) => {
      thread!.end(new Error(why));
      thread = undefined;
    });
  };
  const raced = engines.value.filter((e) => results.value.some((m) => m.engine === e.name));
  const done = rows.value.filter((r) => results.value.some((m) => m.row === r.id));
  const of = (row: string, name: string): Measured | undefined => results.value.find((m) => m.row === row && m.engine === name);
  const adapterName = adapter.value && 'name' in adapter.value ? adapter.value.name : 'unknown adapter';
  const json = () => JSON.stringify({ adapter: adapterName, userAgent: navigator.userAgent, engines: raced, peak: peak.value, results: results.value }, null, 1);
  const table = () => {
    const head = ['ms a run, median', ...raced.map((e) => `${e.name} ${e.version}`), 'GFLOP/s', 'of peak'];
    const lines = done.map((r) => {
      const ours = of(r.id, 'bruit')?.ms;
      return [
        r.name,
        ...raced.map((e) => {
          const m = of(r.id, e.name);
          return m?.ms === undefined ? '–' : ms(m.ms);
        }),
        ours ? (r.flops / ours / 1e6).toPrecision(3) : '–',
        ours && peak.value ? `${((100 * r.flops) / (ours / 1e3) / peak.value.f32).toFixed(0)}%` : '–',
      ];
    });
    return [`**${adapterName}**`, '', head, head.map((_, i) => (i ? '--:' : '---')), ...lines].map((l) => (Array.isArray(l) ? `| ${l.join(' | ')} |` : l)).join('\n');
  };

  return (
    <div class="split">
      <form
        class="panel"
        onSubmit={(e) => {
          e.preventDefault();
          void run();
        }}
      >
        <fieldset disabled={running.value}>
          <legend>Work</legend>
          {rows.value.map((r) => (
            <label class="check" key={r.id}>
              <input type="checkbox" checked={chosen.value.has(r.id)} onChange={() => (chosen.value = toggle(chosen.value, r.id))} />
              {r.name}
            </label>
          ))}
        </fieldset>
        <fieldset disabled={running.value}>
          <legend>Engines</legend>
          {engines.value.map((e) => (
            <label class="check" key={e.name}>
              <input type="checkbox" checked={racing.value.has(e.name)} disabled={e.name === 'bruit'} onChange={() => (racing.value = toggle(racing.value, e.name))} />
              {e.name} {e.version}
            </label>
          ))}
          {engines.value.length === 1 && (
            <small>
              Other engines race here where they were installed when the page was built: <code>npm run bench:peers</code> installs them.
            </small>
          )}
          <Slider label="Seconds a row and engine" value={seconds.value} min={0.1} max={10} step={0.1} onChange={(v) => (seconds.value = v)} />
        </fieldset>
        <div class="actions">
          <button type="submit" class="primary" disabled={running.value || chosen.value.size === 0 || engines.value.length === 0}>
            Measure
          </button>
          {running.value && (
            <button type="button" onClick={() => void stop().catch(() => undefined)}>
              Stop
            </button>
          )}
        </div>
      </form>
      <div class="stage">
        <Problem>{problem.value}</Problem>
        {running.value && <Progress value={done.length} max={chosen.value.size} label={`${done.length} of ${chosen.value.size} rows`} />}
        {results.value.length === 0 && !running.value && (
          <p class="lead">Kernels at the shapes of real layers, a U-Net of 4.4 million weights, and its training step, on your GPU. The engines take turns, each on a device of its own, and their numbers are compared.</p>
        )}
        {done.length > 0 && (
          <>
            <div class="scroll">
              <table>
                <thead>
                  <tr>
                    <th>milliseconds a run</th>
                    {raced.map((e) => (
                      <th key={e.name}>{e.name}</th>
                    ))}
                    <th>Gflop/s</th>
                    <th>of peak</th>
                  </tr>
                </thead>
                <tbody>
                  {done.map((r) => {
                    const fastest = Math.min(...raced.map((e) => of(r.id, e.name)?.ms ?? Infinity));
                    const ours = of(r.id, 'bruit')?.ms;
                    return (
                      <tr key={r.id}>
                        <td>{r.name}</td>
                        {raced.map((e) => {
                          const m = of(r.id, e.name);
                          return (
                            <td key={e.name} title={m?.problem ?? (m?.difference !== undefined ? `differs by ${m.difference.toExponential(1)}; first result after ${ms(m.firstMs ?? 0)} ms` : '')}>
                              {m?.problem ? 'failed' : m?.ms === undefined ? '–' : m.ms === fastest ? <strong>{ms(m.ms)}</strong> : ms(m.ms)}
                              {m?.difference !== undefined && !(m.difference < 1e-2) && ' (other numbers)'}
                            </td>
                          );
                        })}
                        <td>{ours ? (r.flops / ours / 1e6).toPrecision(3) : ''}</td>
                        <td>{ours && peak.value ? `${((100 * r.flops) / (ours / 1e3) / peak.value.f32).toFixed(0)}%` : ''}</td>
                      </tr>
                    );
                  })}
                </tbody>
              </table>
            </div>
            {peak.value && <Roofline rows={rows.value} results={results.value} peak={peak.value} />}
            <div class="actions">
              <button type="button" disabled={running.value} onClick={() => save('bruit-bench.json', json(), 'application/json')}>
                Save JSON
              </button>
              <button type="button" disabled={running.value} onClick={() => void navigator.clipboard.writeText(table()).then(() => (copied.value = true), () => (copied.value = false))}>
                {copied.value ? 'Copied' : 'Copy table'}
              </button>
            </div>
            <Field label="The table as Markdown">{(id) => <textarea id={id} readOnly rows={Math.min(4 + done.length, 14)} value={table()} />}</Field>
          </>
        )}
      </div>
    </div>
  );
}
