/** The Tour tab: docs/tour.md with an experiment where it names one. */
import { useSignal } from '@preact/signals';
import type { ComponentType } from 'preact';
import { useEffect, useRef } from 'preact/hooks';
import html from '../docs/tour.md';
import type { SchedulerName } from '../src/pipelines/ddpm';
import { DiffusionProcess } from '../src/sampler/diffusion_process';
import { noiseTables, parseSchedulerConfig } from '../src/sampler/scheduler_config';
import { bytes, Choice, GpuCanvas, message, Plot, Problem, Select, Slider } from './components';
import { adapter, callback, engine } from './engine';
import type { DriftResult, ForwardResult, JumpResult, MemoryResult, ToyShape, ToyState } from './worker/tour';
import type { CanvasSize } from './worker/view';

/** What an experiment does while it works, and what went wrong. */
function useWork() {
  const busy = useSignal(false);
  const problem = useSignal('');
  const work = async (task: () => Promise<void>): Promise<void> => {
    if (busy.value) return;
    busy.value = true;
    problem.value = '';
    try {
      await task();
    } catch (e) {
      problem.value = message(e);
    } finally {
      busy.value = false;
    }
  };
  return { busy, problem, work };
}

const centres = Array.from({ length: 64 }, (_, i) => -4 + (8 * (i + 0.5)) / 64);
const bell = centres.map((x) => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI));
const density = (counts: readonly number[]): number[] => {
  const total = counts.reduce((a, b) => a + b, 0) || 1;
  return counts.map((n) => n / total / (8 / 64));
};

function Forward() {
  const t = useSignal(120);
  const repeat = useSignal(false);
  const result = useSignal<ForwardResult | undefined>(undefined);
  const { busy, problem, work } = useWork();
  const run = () => work(async () => void (result.value = await (await engine()).tour.forward('tour-chain', 'tour-closed', t.value, repeat.value)));
  const r = result.value;
  return (
    <>
      <div class="toolbar">
        <Slider label="Steps of the chain" value={t.value} min={0} max={999} onChange={(v) => (t.value = v)} />
        <label class="check">
          <input type="checkbox" checked={repeat.value} onChange={(e) => (repeat.value = e.currentTarget.checked)} />
          the same noise in every step
        </label>
        <button type="button" class="primary" disabled={busy.value} onClick={() => void run()}>
          Add noise
        </button>
      </div>
      <Problem>{problem.value}</Problem>
      <div class="pictures">
        <figure>
          <GpuCanvas name="tour-chain" label="Digits noised step by step" size={r?.sizes[0]} />
          <figcaption>step by step</figcaption>
        </figure>
        <figure>
          <GpuCanvas name="tour-closed" label="Digits noised at once" size={r?.sizes[1]} />
          <figcaption>at once</figcaption>
        </figure>
      </div>
      {r && (
        <>
          <Plot
            data={[centres, density(r.chain), density(r.closed), bell]}
            series={[{ label: 'step by step' }, { label: 'at once', color: '--second' }, { label: 'bell curve', color: '--quiet', dash: [4, 4] }]}
            x="(x_t − √ᾱ·x₀) / √(1−ᾱ)"
          />
          <p class="verdict" aria-live="polite">
            ᾱ = {r.alphaBar.toPrecision(3)}. The two distribution functions are at most {r.distance.toFixed(4)} apart; chance alone gives up to {r.critical.toFixed(4)} in 19 of 20 cases: {r.distance < r.critical * 1.2 ? 'equal in distribution' : 'not equal in distribution'}.
          </p>
        </>
      )}
    </>
  );
}

const schedules = [
  ['linear', 'linear', '--accent'],
  ['scaled_linear', 'scaled linear', '--second'],
  ['squaredcos_cap_v2', 'cosine', '--third'],
] as const;

function Schedule() {
  const what = useSignal<'snr' | 'alpha'>('snr');
  const ts = Array.from({ length: 200 }, (_, i) => i * 5);
  const lines = schedules.map(([beta_schedule]) => {
    const { betas, alphasCumprod } = noiseTables(parseSchedulerConfig({ _class_name: 'DDPMScheduler', beta_schedule, ...(beta_schedule === 'scaled_linear' && { beta_start: 0.00085, beta_end: 0.012 }) }));
    const process = new DiffusionProcess(betas, alphasCumprod);
    return ts.map((t) => (what.value === 'snr' ? process.snr(t) : process.alphaBar(t)));
  });
  return (
    <>
      <Choice
        label="What is drawn"
        value={what.value}
        options={[
          ['snr', 'signal-to-noise ratio'],
          ['alpha', 'signal ᾱ'],
        ]}
        onChange={(v) => (what.value = v)}
      />
      <Plot key={what.value} data={[ts, ...lines]} series={schedules.map(([, label, color]) => ({ label, color }))} x="t" y={what.value === 'snr' ? 'SNR' : 'ᾱ'} log={what.value === 'snr'} height={220} />
    </>
  );
}

function Reverse() {
  const label = useSignal(5);
  const seed = useSignal(3);
  const sizes = useSignal<readonly (CanvasSize | undefined)[]>([]);
  const { busy, problem, work } = useWork();
  const run = () => work(async () => void (sizes.value = await (await engine()).tour.reverse('tour-noisy', 'tour-predicted', label.value, 8, seed.value)));
  return (
    <>
      <div class="toolbar">
        <Select label="Digit" value={String(label.value)} options={Array.from({ length: 10 }, (_, i) => [String(i), String(i)] as const)} onChange={(v) => (label.value = Number(v))} />
        <Slider label="Seed" value={seed.value} min={0} max={99} onChange={(v) => (seed.value = v)} />
        <button type="button" class="primary" disabled={busy.value} onClick={() => void run()}>
          Go back
        </button>
      </div>
      <Problem>{problem.value}</Problem>
      <div class="strips">
        <GpuCanvas name="tour-noisy" label="x_t, step by step" size={sizes.value[0]} />
        <GpuCanvas name="tour-predicted" label="The predicted x0, step by step" size={sizes.value[1]} />
      </div>
    </>
  );
}

function Prediction() {
  const t = useSignal(500);
  const result = useSignal<{ size: CanvasSize | undefined; signal: number; noise: number } | undefined>(undefined);
  const { busy, problem, work } = useWork();
  const run = () => work(async () => void (result.value = await (await engine()).tour.prediction('tour-prediction', t.value)));
  return (
    <>
      <div class="toolbar">
        <Slider label="Time" value={t.value} min={1} max={999} onChange={(v) => (t.value = v)} />
        <button type="button" class="primary" disabled={busy.value} onClick={() => void run()}>
          Ask the model
        </button>
      </div>
      <Problem>{problem.value}</Problem>
      <figure>
        <GpuCanvas name="tour-prediction" label="x_t, v, predicted x0, predicted noise, and the true x0" size={result.value?.size} />
        <figcaption class="five">
          <span>x_t</span>
          <span>v, as predicted</span>
          <span>x₀ from it</span>
          <span>ε from it</span>
          <span>the true x₀</span>
        </figcaption>
      </figure>
      {result.value && (
        <p class="quiet">
          √ᾱ = {result.value.signal.toPrecision(3)}, √(1−ᾱ) = {result.value.noise.toPrecision(3)}
        </p>
      )}
    </>
  );
}

function Denoiser() {
  const kind = useSignal<'unet' | 'transformer'>('unet');
  const width = useSignal(64);
  const depth = useSignal(3);
  const pixels = useSignal<'32' | '64' | '128'>('32');
  const result = useSignal<{ parameters: number; flops: number; bytes: number; dispatches: number } | undefined>(undefined);
  const { problem, work } = useWork();
  useEffect(() => void work(async () => void (result.value = await (await engine()).tour.denoiser(kind.value, width.value, depth.value, Number(pixels.value)))), [kind.value, width.value, depth.value, pixels.value]);
  return (
    <>
      <div class="toolbar">
        <Choice
          label="Kind"
          value={kind.value}
          options={[
            ['unet', 'U-Net'],
            ['transformer', 'Transformer'],
          ]}
          onChange={(v) => (kind.value = v)}
        />
        <Slider label="Width" value={width.value} min={16} max={256} step={16} onChange={(v) => (width.value = v)} />
        <Slider label={kind.value === 'unet' ? 'Resolutions' : 'Layers, thirds'} value={depth.value} min={2} max={4} onChange={(v) => (depth.value = v)} />
        <Select
          label="Image"
          value={pixels.value}
          options={[
            ['32', '32×32'],
            ['64', '64×64'],
            ['128', '128×128'],
          ]}
          onChange={(v) => (pixels.value = v)}
        />
      </div>
      <Problem>{problem.value}</Problem>
      {result.value && (
        <dl class="readout big">
          <div>
            <dt>weights</dt>
            <dd>{(result.value.parameters / 1e6).toPrecision(3)} M</dd>
          </div>
          <div>
            <dt>arithmetic of one call</dt>
            <dd>{(result.value.flops / 1e9).toPrecision(3)} Gflop</dd>
          </div>
          <div>
            <dt>activations</dt>
            <dd>{bytes(result.value.bytes)}</dd>
          </div>
          <div>
            <dt>dispatches</dt>
            <dd>{result.value.dispatches}</dd>
          </div>
        </dl>
      )}
    </>
  );
}

const scales = [0, 1, 1.5, 2, 4, 6];

function Guidance() {
  const label = useSignal(4);
  const seed = useSignal(1);
  const size = useSignal<CanvasSize | undefined>(undefined);
  const { busy, problem, work } = useWork();
  const run = () => work(async () => void (size.value = await (await engine()).tour.guidance('tour-guidance', label.value, seed.value, scales)));
  return (
    <>
      <div class="toolbar">
        <Select label="Digit" value={String(label.value)} options={Array.from({ length: 10 }, (_, i) => [String(i), String(i)] as const)} onChange={(v) => (label.value = Number(v))} />
        <Slider label="Seed" value={seed.value} min={0} max={99} onChange={(v) => (seed.value = v)} />
        <button type="button" class="primary" disabled={busy.value} onClick={() => void run()}>
          Guide
        </button>
      </div>
      <Problem>{problem.value}</Problem>
      <figure>
        <GpuCanvas name="tour-guidance" label="One seed under growing guidance" size={size.value} />
        <figcaption class="five">
          {scales.map((s) => (
            <span key={s}>{s}</span>
          ))}
        </figcaption>
      </figure>
    </>
  );
}

/** Software adapters take a second for what a GPU does in a moment. */
const trainingSteps = (): number => (adapter.value && 'kind' in adapter.value && adapter.value.kind === 'software' ? 150 : 800);

/** Points of the plane, [-2.2, 2.2] both ways; the newer over the older. */
function Points({ sets, label }: { sets: readonly { data: Float32Array; color: string }[]; label: string }) {
  const ref = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const canvas = ref.current!;
    const ratio = devicePixelRatio || 1;
    canvas.width = canvas.height = 320 * ratio;
    const context = canvas.getContext('2d')!;
    const style = getComputedStyle(document.documentElement);
    for (const { data, color } of sets) {
      context.fillStyle = style.getPropertyValue(color).trim();
      for (let i = 0; i < data.length; i += 2) {
        context.beginPath();
        context.arc((data[i]! / 4.4 + 0.5) * canvas.width, (0.5 - data[i + 1]! / 4.4) * canvas.height, 1.6 * ratio, 0, 7);
        context.fill();
      }
    }
  }, [sets]);
  return <canvas ref={ref} class="points" role="img" aria-label={label} />;
}

function Training() {
  const shape = useSignal<ToyShape>('spiral');
  const state = useSignal<ToyState | undefined>(undefined);
  const losses = useSignal<readonly (readonly [number, number])[]>([]);
  const made = useSignal<Float32Array | undefined>(undefined);
  const { busy, problem, work } = useWork();
  const run = (fresh: boolean) =>
    work(async () => {
      const { tour } = await engine();
      if (fresh) losses.value = [];
      await tour.toyTrain(
        shape.value,
        trainingSteps(),
        fresh,
        callback((s) => {
          state.value = s;
          losses.value = [...losses.value, [s.step, s.loss]];
        }),
      );
      made.value = (await tour.toySample('ddim', 20, 1)).frames.at(-1);
    });
  return (
    <>
      <div class="toolbar">
        <Choice
          label="Shape of the data"
          value={shape.value}
          options={[
            ['spiral', 'Spiral'],
            ['moons', 'Moons'],
            ['ring', 'Ring'],
          ]}
          onChange={(v) => {
            shape.value = v;
            // A training that is going on takes its next batch from it.
            if (busy.value) void engine().then(({ tour }) => tour.toyShape(v)).catch(() => undefined);
          }}
        />
        <button type="button" class="primary" disabled={busy.value} onClick={() => void run(true)}>
          Train from nothing
        </button>
        <button type="button" disabled={busy.value || !state.value} onClick={() => void run(false)}>
          More steps
        </button>
      </div>
      <Problem>{problem.value}</Problem>
      <div class="pictures">
        <figure>
          <Points label="Data and samples" sets={[...(state.value ? [{ data: state.value.data, color: '--line-strong' }] : []), ...(made.value ? [{ data: made.value, color: '--accent' }] : [])]} />
          <figcaption aria-live="polite">{state.value ? `step ${state.value.step}, on the ${state.value.shape}; grey: data, colour: what the model makes of noise` : ''}</figcaption>
        </figure>
        {losses.value.length > 1 && <Plot data={[losses.value.map(([s]) => s), losses.value.map(([, l]) => l)]} series={[{ label: 'loss' }]} x="step" y="loss" height={260} />}
      </div>
    </>
  );
}

function Memory() {
  const rho = useSignal(0.9);
  const result = useSignal<MemoryResult | undefined>(undefined);
  const { busy, problem, work } = useWork();
  const run = () => work(async () => void (result.value = await (await engine()).tour.memory(400, rho.value)));
  const r = result.value;
  return (
    <>
      <div class="toolbar">
        <Slider label="What a step’s noise keeps of the one before" value={rho.value} min={0} max={0.99} step={0.01} onChange={(v) => (rho.value = v)} />
        <button type="button" class="primary" disabled={busy.value} onClick={() => void run()}>
          Add noise with memory
        </button>
      </div>
      <Problem>{problem.value}</Problem>
      {r && (
        <>
          <Plot
            data={[centres, density(r.chain), density(r.closed)]}
            series={[{ label: 'the chain' }, { label: 'closed form', color: '--second', dash: [4, 4] }]}
            x="(x_t − √ᾱ·x₀) / √(1−ᾱ)"
          />
          <p class="verdict" aria-live="polite">
            Standard deviation {r.deviations[0].toFixed(2)} where the closed form has {r.deviations[1].toFixed(2)}: {r.distance < r.critical * 1.2 ? 'the closed form holds' : 'the closed form is wrong'}.
          </p>
        </>
      )}
    </>
  );
}

function Drift() {
  const results = useSignal<readonly (DriftResult & { readonly title: string })[]>([]);
  const { busy, problem, work } = useWork();
  const run = () =>
    work(async () => {
      results.value = [];
      const { tour } = await engine();
      for (const [title, moves] of [['data that stay', false], ['data that move', true]] as const) results.value = [...results.value, { title, ...(await tour.drift(moves, trainingSteps())) }];
    });
  return (
    <>
      <button type="button" class="primary" disabled={busy.value} onClick={() => void run()}>
        Train on both
      </button>
      <Problem>{problem.value}</Problem>
      <div class="pictures">
        {results.value.map(({ title, data, made, behind }) => (
          <figure key={title}>
            <Points label={`Samples after training on ${title}`} sets={[{ data, color: '--line-strong' }, { data: made, color: '--accent' }]} />
            <figcaption aria-live="polite">
              {title}: the samples are {behind.toFixed(2)} behind the data
            </figcaption>
          </figure>
        ))}
      </div>
    </>
  );
}

function Jump() {
  const result = useSignal<JumpResult | undefined>(undefined);
  const { busy, problem, work } = useWork();
  const run = () => work(async () => void (result.value = await (await engine()).tour.jump(trainingSteps(), [3, 10, 50])));
  return (
    <>
      <button type="button" class="primary" disabled={busy.value} onClick={() => void run()}>
        Train on two islands
      </button>
      <Problem>{problem.value}</Problem>
      <div class="small-pictures">
        {result.value?.made.map(({ steps, points, between }) => (
          <figure key={steps}>
            <Points label={`Samples in ${steps} steps`} sets={[{ data: result.value!.data, color: '--line-strong' }, { data: points, color: '--accent' }]} />
            <figcaption>
              {steps} steps: {(100 * between).toFixed(1)}% in between
            </figcaption>
          </figure>
        ))}
      </div>
    </>
  );
}

const racers: readonly (readonly [SchedulerName, string])[] = [
  ['ddpm', 'DDPM'],
  ['ddim', 'DDIM'],
  ['heun', 'Heun'],
  ['dpmpp', 'DPM-Solver++'],
  ['unipc', 'UniPC'],
];

function Sampling() {
  const steps = useSignal(10);
  const results = useSignal<readonly { name: string; data: Float32Array; distance: number }[]>([]);
  const { busy, problem, work } = useWork();
  const run = () =>
    work(async () => {
      results.value = [];
      const { tour } = await engine();
      for (const [scheduler, name] of racers) {
        const { frames, distance } = await tour.toySample(scheduler, steps.value, 2);
        results.value = [...results.value, { name, data: frames.at(-1)!, distance }];
      }
    });
  return (
    <>
      <div class="toolbar">
        <Slider label="Steps" value={steps.value} min={2} max={100} onChange={(v) => (steps.value = v)} />
        <button type="button" class="primary" disabled={busy.value} onClick={() => void run()}>
          Race
        </button>
      </div>
      <Problem>{problem.value}</Problem>
      <div class="small-pictures">
        {results.value.map(({ name, data, distance }) => (
          <figure key={name}>
            <Points label={`Samples of ${name}`} sets={[{ data, color: '--accent' }]} />
            <figcaption>
              {name}: {distance.toFixed(3)}
            </figcaption>
          </figure>
        ))}
      </div>
    </>
  );
}

function Kernel() {
  const result = useSignal<{ kernel: string; text: string; line: number } | undefined>(undefined);
  const { busy, problem, work } = useWork();
  const run = () => work(async () => void (result.value = await (await engine()).tour.firstConvolution()));
  const lines = result.value?.text.split('\n') ?? [];
  return (
    <>
      <div class="toolbar">
        <button type="button" class="primary" disabled={busy.value} onClick={() => void run()}>
          Show the kernel that runs here
        </button>
      </div>
      <Problem>{problem.value}</Problem>
      {result.value && (
        <>
          <p class="quiet">
            {result.value.kernel}, {lines.length} lines, specialised for this adapter and shape
          </p>
          <pre tabIndex={0} aria-label="WGSL of the first convolution" ref={(pre) => void pre?.querySelector('mark')?.scrollIntoView({ block: 'nearest' })}>
            <code>
              {lines.map((line, i) => (i === result.value!.line ? <mark key={i}>{`${line}\n`}</mark> : `${line}\n`))}
            </code>
          </pre>
        </>
      )}
    </>
  );
}

const experiments: Readonly<Record<string, ComponentType>> = {
  forward: Forward,
  schedule: Schedule,
  reverse: Reverse,
  prediction: Prediction,
  denoiser: Denoiser,
  guidance: Guidance,
  training: Training,
  sampling: Sampling,
  memory: Memory,
  drift: Drift,
  jump: Jump,
  kernel: Kernel,
};

/** Text, name of an experiment, text, …; code is folded away. */
const parts = html.replace(/<pre><code[^>]*>([^]*?)<\/code><\/pre>/g, '<details><summary>The same in code</summary><pre tabindex="0"><code>$1</code></pre></details>').split(/<!-- experiment: (\w+) -->/);

export function Tour() {
  return (
    <article class="tour">
      {parts.map((part, i) => {
        if (i % 2 === 0) return <div key={i} dangerouslySetInnerHTML={{ __html: part }} />;
        const Experiment = experiments[part]!;
        return (
          <div key={i} class="experiment" id={`experiment-${part}`} role="group" aria-label={`Experiment: ${part}`}>
            <Experiment />
          </div>
        );
      })}
    </article>
  );
}
