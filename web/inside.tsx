/** The Inside tab. */
import { useSignal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { bytes, Choice, GpuCanvas, message, Problem, Progress, Select, Slider } from './components';
import { engine } from './engine';
import { model } from './sample';
import type { DispatchDetail, LayerDetail, Life, Overview, Shown, Statistics, Times } from './worker/inside';

const si = (n: number, unit: string): string => {
  const [scale, prefix] = n >= 1e12 ? [1e12, 'T'] : n >= 1e9 ? [1e9, 'G'] : n >= 1e6 ? [1e6, 'M'] : n >= 1e3 ? [1e3, 'k'] : [1, ''];
  return `${(n / scale).toPrecision(3)} ${prefix}${unit}`;
};
const percent = (x: number): string => `${(100 * x).toFixed(x < 0.1 ? 1 : 0)}%`;
const short = (x: number): string => (Number.isInteger(x) && Math.abs(x) < 1e6 ? String(x) : Math.abs(x) >= 0.01 && Math.abs(x) < 1e4 ? x.toPrecision(3) : x.toExponential(1));

function Histogram({ statistics: { shape, min, max, mean, std, histogram } }: { statistics: Statistics }) {
  const most = Math.max(...histogram.counts);
  return (
    <div class="histogram">
      <svg viewBox="0 0 96 40" preserveAspectRatio="none" role="img" aria-label={`Values from ${short(min)} to ${short(max)}`}>
        {histogram.counts.map((n, i) => (
          <rect key={i} x={2 * i} width={1.7} y={40 - (38 * n) / most} height={(38 * n) / most} />
        ))}
      </svg>
      <p class="quiet">
        [{shape.join(', ')}] from {short(min)} to {short(max)}, mean {short(mean)}, standard deviation {short(std)}
      </p>
    </div>
  );
}

const rowHeight = 24;

/** The recorded program in the order of its execution; arcs go from a result to what reads it later. */
function Dispatches({ overview, times, chosen, onChoose }: { overview: Overview; times: Times | undefined; chosen: number; onChoose: (i: number) => void }) {
  const { dispatches } = overview;
  const longest = times?.each ? Math.max(...times.each) : Math.max(...dispatches.map((d) => d.flops));
  const gutter = 64;
  return (
    <div class="dispatches" role="listbox" tabIndex={0} aria-label="Dispatches in order" aria-activedescendant={`dispatch-${chosen}`}
      onKeyDown={(e) => {
        const step = { ArrowDown: 1, ArrowUp: -1 }[e.key];
        if (step === undefined) return;
        e.preventDefault();
        const next = Math.min(Math.max(chosen + step, 0), dispatches.length - 1);
        onChoose(next);
        document.getElementById(`dispatch-${next}`)?.scrollIntoView({ block: 'nearest' });
      }}
    >
      <svg width={gutter} height={dispatches.length * rowHeight} aria-hidden="true">
        {dispatches.flatMap((d, i) =>
          d.after
            .filter((from) => i - from > 1)
            .map((from) => {
              const [y0, y1] = [from, i].map((r) => (r + 0.5) * rowHeight);
              const reach = gutter - 4 - Math.min(gutter - 8, 6 + 9 * Math.log2(i - from));
              return <path key={`${from}-${i}`} class={from === chosen || i === chosen ? 'near' : ''} d={`M${gutter - 4},${y0} C${reach},${y0} ${reach},${y1} ${gutter - 4},${y1}`} />;
            }),
        )}
      </svg>
      <div>
        {dispatches.map((d, i) => (
          <div key={i} id={`dispatch-${i}`} role="option" aria-selected={i === chosen} class="dispatch" onClick={() => onChoose(i)}>
            <span class="op">{d.op}</span>
            <span class="path">{d.path || 'sampler'}</span>
            <span class="time">{times?.each ? `${(times.each[i]! / 1e6).toFixed(times.each[i]! < 1e5 ? 3 : 2)} ms` : si(d.flops, 'flop')}</span>
            <span class="bar" style={{ width: `${(100 * (times?.each ? times.each[i]! : d.flops)) / longest}%` }} />
          </div>
        ))}
      </div>
    </div>
  );
}

function Detail({ overview, index, detail, times, shown, step }: { overview: Overview; index: number; detail: DispatchDetail | undefined; times: Times | undefined; shown: Shown | undefined; step: number }) {
  const d = overview.dispatches[index]!;
  const time = times?.each?.[index];
  const rate = (n: number) => (time ? (n / time) * 1e9 : undefined);
  return (
    <div class="detail">
      <h2>
        {d.op} <span class="quiet">{d.path}</span>
      </h2>
      <dl class="facts">
        <div>
          <dt>kernel</dt>
          <dd>{d.kernel}</dd>
        </div>
        <div>
          <dt>workgroups</dt>
          <dd>{d.workgroups.toLocaleString('en')}</dd>
        </div>
        <div>
          <dt>arithmetic</dt>
          <dd>{si(d.flops, 'flop')}</dd>
        </div>
        <div>
          <dt>least traffic</dt>
          <dd>{bytes(d.bytes)}</dd>
        </div>
        {time !== undefined && (
          <>
            <div>
              <dt>time</dt>
              <dd>{(time / 1e6).toFixed(3)} ms</dd>
            </div>
            <div>
              <dt>of peak arithmetic</dt>
              <dd>
                {si(rate(d.flops)!, 'flop/s')}, {percent(rate(d.flops)! / times!.peak.f32)}
              </dd>
            </div>
            <div>
              <dt>of peak traffic</dt>
              <dd>
                {si(rate(d.bytes)!, 'B/s')}, {percent(rate(d.bytes)! / times!.peak.bandwidth)}
              </dd>
            </div>
          </>
        )}
      </dl>
      <figure class="maps">
        <GpuCanvas name="inside-kernel" label={`What ${d.op} ${d.path} has written`} size={shown?.size} />
        <figcaption>
          {shown && (
            <>
              What it has written in denoising step {step + 1}
              {shown.drawn[0] < shown.drawn[1] && `: ${shown.drawn[0]} of ${shown.drawn[1]} channels`}.
            </>
          )}
        </figcaption>
      </figure>
      {shown && <Histogram statistics={shown.statistics} />}
      {detail && (
        <>
          <h3>Bindings</h3>
          <div class="scroll">
            <table>
              <thead>
                <tr>
                  <th>variable</th>
                  <th>access</th>
                  <th>shape</th>
                  <th>size</th>
                  <th>what it is</th>
                </tr>
              </thead>
              <tbody>
                {detail.operands.map((o) => (
                  <tr key={o.name}>
                    <td>
                      <code>{o.name}</code>
                    </td>
                    <td>{o.access}</td>
                    <td>
                      {o.dtype} [{o.shape.join(', ')}]
                    </td>
                    <td>{bytes(o.bytes)}</td>
                    <td>{o.what}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
          {Object.keys(detail.params).length > 0 && (
            <p class="quiet">
              <code>params</code>: {Object.entries(detail.params).map(([name, value]) => `${name} ${short(value)}`).join(', ')}
            </p>
          )}
          <details>
            <summary>WGSL, {detail.wgsl.split('\n').length} lines</summary>
            <pre tabIndex={0} aria-label="WGSL">
              <code>{detail.wgsl}</code>
            </pre>
          </details>
        </>
      )}
    </div>
  );
}

/** Rows are buffers; a bar is the life of a value in it. */
function Memory({ overview }: { overview: Overview }) {
  const { lives, slots, dispatches, plannedBytes, naiveBytes, peakLiveBytes } = overview;
  const over = useSignal<Life | undefined>(undefined);
  const total = slots.reduce((a, b) => a + b, 0);
  const height = 360;
  let at = 0;
  const rows = slots.map((size) => {
    const y = at;
    const h = Math.max((size / total) * height, 3);
    at += h + 1;
    return { y, h };
  });
  return (
    <div class="stage">
      <p>
        {lives.length} values share {slots.length} buffers: {bytes(plannedBytes)} planned, {bytes(naiveBytes)} if each had its own, {bytes(peakLiveBytes)} alive at the worst moment, which no plan can beat.
      </p>
      <svg class="timeline" viewBox={`0 0 800 ${at + 16}`} role="img" aria-label="Lives of values in the plan's buffers">
        {rows.map(({ y, h }, i) => (
          <rect key={i} class="slot" x={0} y={y} width={800} height={h} />
        ))}
        {lives.map((life, i) => {
          const { y, h } = rows[life.slot]!;
          const scale = 800 / dispatches.length;
          return (
            <rect key={i} class="life" x={life.first * scale} y={y + h - (h * life.bytes) / slots[life.slot]!} width={Math.max((life.last - life.first + 1) * scale - 0.6, 1)} height={(h * life.bytes) / slots[life.slot]!} onMouseEnter={() => (over.value = life)}>
              <title>
                {life.label}: {bytes(life.bytes)}, dispatches {life.first} to {life.last}
              </title>
            </rect>
          );
        })}
        <text x={0} y={at + 12}>
          first dispatch
        </text>
        <text x={800} y={at + 12} text-anchor="end">
          last dispatch
        </text>
      </svg>
      <p class="quiet">{over.value ? `${over.value.label}: ${bytes(over.value.bytes)}, dispatches ${over.value.first} to ${over.value.last}` : 'Heights are bytes, widths are dispatches.'}</p>
    </div>
  );
}

type View = 'dispatches' | 'layers' | 'weights' | 'memory';

export function Inside() {
  const overview = useSignal<Overview | undefined>(undefined);
  const times = useSignal<Times | undefined>(undefined);
  const view = useSignal<View>('dispatches');
  const label = useSignal(3);
  const step = useSignal(4);
  const index = useSignal(0);
  const detail = useSignal<DispatchDetail | undefined>(undefined);
  const shown = useSignal<Shown | undefined>(undefined);
  const layerPath = useSignal('');
  const layer = useSignal<LayerDetail | undefined>(undefined);
  const weightName = useSignal('');
  const weight = useSignal<Shown | undefined>(undefined);
  const busy = useSignal('');
  const problem = useSignal('');

  const attempt = async (what: string, work: () => Promise<void>): Promise<void> => {
    if (busy.value) return;
    problem.value = '';
    busy.value = what;
    try {
      await work();
    } catch (e) {
      problem.value = message(e);
    } finally {
      busy.value = '';
    }
  };
  const pick = async (i: number): Promise<void> => {
    index.value = i;
    const { inside } = await engine();
    try {
      detail.value = await inside.dispatch(i);
      shown.value = await inside.until('inside-kernel', step.value, i);
    } catch (e) {
      problem.value = message(e);
    }
  };
  const open = () =>
    attempt('Compiling', async () => {
      const { inside } = await engine();
      times.value = undefined;
      overview.value = await inside.open(label.value, 7);
      const first = overview.value.dispatches.findIndex((d) => d.op === 'conv2d');
      layerPath.value = overview.value.layers.find((l) => l.endsWith('attentions.0')) ?? overview.value.layers[0]!;
      weightName.value = overview.value.weights.find((w) => w.name.endsWith('conv_in.weight'))?.name ?? overview.value.weights[0]!.name;
      await pick(Math.max(first, 0));
    });
  const time = () => attempt('Timing every dispatch', async () => void (times.value = await (await engine()).inside.times()));
  const look = (path: string) =>
    attempt('Looking', async () => {
      layerPath.value = path;
      layer.value = await (await engine()).inside.layer('inside-layer', 'inside-attention', path, step.value);
    });
  const lookAtWeight = (name: string) =>
    attempt('Reading', async () => {
      weightName.value = name;
      weight.value = await (await engine()).inside.weight('inside-weight', name);
    });
  const show = (to: View): void => {
    view.value = to;
    // The canvas of the view must be there first.
    setTimeout(() => void (to === 'layers' ? look(layerPath.value) : to === 'weights' ? lookAtWeight(weightName.value) : to === 'dispatches' ? pick(index.value) : undefined), 0);
  };
  useEffect(() => void (model.value && !overview.value && open()), [model.value]);

  const o = overview.value;
  return (
    <div class="stage">
      <div class="toolbar">
        {model.value?.condition === 'labels' && <Select label="Label" value={String(label.value)} options={model.value.classes.map((c, i) => [String(i), c] as const)} onChange={(v) => ((label.value = Number(v)), void open())} />}
        {o && (
          <Slider
            label="Denoising step"
            value={step.value + 1}
            min={1}
            max={o.steps}
            onChange={(v) => {
              step.value = v - 1;
              if (view.value === 'layers') void look(layerPath.value);
              if (view.value === 'dispatches') void pick(index.value);
            }}
          />
        )}
        <Choice
          label="View"
          value={view.value}
          options={[
            ['dispatches', 'Kernels'],
            ['layers', 'Layers'],
            ['weights', 'Weights'],
            ['memory', 'Memory'],
          ]}
          onChange={show}
        />
        <button type="button" disabled={!o || busy.value !== ''} onClick={() => void time()}>
          Time every kernel
        </button>
      </div>
      {busy.value && <Progress value={0} max={0} label={busy.value} />}
      <Problem>{problem.value}</Problem>
      {!model.value && <p class="lead">Load a model in the Sample tab first: what runs there is shown here, kernel by kernel.</p>}
      {times.value && !times.value.each && <p class="quiet">This adapter gives no timestamps: one step takes {(times.value.total / 1e6).toFixed(2)} ms in all.</p>}
      {o && view.value === 'dispatches' && (
        <>
          <div class="actions">
            <button type="button" disabled={index.value === 0} onClick={() => void pick(index.value - 1)}>
              Kernel before
            </button>
            <button type="button" disabled={index.value >= o.dispatches.length - 1} onClick={() => void pick(index.value + 1)}>
              Next kernel
            </button>
            <span class="quiet">
              {index.value + 1} of {o.dispatches.length} of one denoising step
            </span>
          </div>
          <div class="inspect">
            <Dispatches overview={o} times={times.value} chosen={index.value} onChoose={(i) => void pick(i)} />
            <Detail overview={o} index={index.value} detail={detail.value} times={times.value} shown={shown.value} step={step.value} />
          </div>
        </>
      )}
      {o && view.value === 'layers' && (
        <div class="inspect">
          <div class="list" role="listbox" aria-label="Layers">
            {o.layers.map((path) => (
              <button key={path} type="button" role="option" aria-selected={path === layerPath.value} style={{ paddingLeft: `${0.6 + 0.7 * (path.split('.').length - 1)}rem` }} onClick={() => void look(path)}>
                {path}
              </button>
            ))}
          </div>
          <div class="detail">
            <h2>{layerPath.value}</h2>
            <figure class="maps">
              <GpuCanvas name="inside-layer" label={`Activations of ${layerPath.value}`} size={layer.value?.size} />
              <figcaption>
                Activations in denoising step {step.value + 1}
                {layer.value && layer.value.drawn[0] < layer.value.drawn[1] && `: ${layer.value.drawn[0]} of ${layer.value.drawn[1]} channels`}. Black is three standard deviations below the mean, white as many above.
              </figcaption>
            </figure>
            {layer.value && <Histogram statistics={layer.value.statistics} />}
            <figure class="maps" hidden={!layer.value?.attention}>
              <GpuCanvas name="inside-attention" label="Attention maps" size={layer.value?.attention?.size} />
              <figcaption>
                {layer.value?.attention && `Attention of ${layer.value.attention.heads} heads: row i says what pixel i of ${layer.value.attention.tokens} looks at.`}
              </figcaption>
            </figure>
            {layer.value?.norm && (
              <>
                <h3>What the group norm saw</h3>
                <div class="scroll">
                  <table>
                    <thead>
                      <tr>
                        <th>group</th>
                        {layer.value.norm.mean.map((_, i) => (
                          <th key={i}>{i}</th>
                        ))}
                      </tr>
                    </thead>
                    <tbody>
                      <tr>
                        <th>mean</th>
                        {layer.value.norm.mean.map((m, i) => (
                          <td key={i}>{short(m)}</td>
                        ))}
                      </tr>
                      <tr>
                        <th>standard deviation</th>
                        {layer.value.norm.std.map((m, i) => (
                          <td key={i}>{short(m)}</td>
                        ))}
                      </tr>
                    </tbody>
                  </table>
                </div>
              </>
            )}
          </div>
        </div>
      )}
      {o && view.value === 'weights' && (
        <div class="inspect">
          <div class="list" role="listbox" aria-label="Weights">
            {o.weights.map(({ name, shape }) => (
              <button key={name} type="button" role="option" aria-selected={name === weightName.value} onClick={() => void lookAtWeight(name)}>
                {name} <span class="quiet">[{shape.join(', ')}]</span>
              </button>
            ))}
          </div>
          <div class="detail">
            <h2>{weightName.value}</h2>
            <figure class="maps">
              <GpuCanvas name="inside-weight" label={`Weight ${weightName.value}`} size={weight.value?.size} />
              <figcaption>Blue is below the mean, orange above{weight.value && weight.value.drawn[0] < weight.value.drawn[1] ? `; ${weight.value.drawn[0]} of ${weight.value.drawn[1]} filters` : ''}.</figcaption>
            </figure>
            {weight.value && <Histogram statistics={weight.value.statistics} />}
          </div>
        </div>
      )}
      {o && view.value === 'memory' && <Memory overview={o} />}
    </div>
  );
}
