/** The Sample tab. */
import { signal, useSignal } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';
import { bytes, Choice, downloadLabel, Field, GpuCanvas, message, Problem, Progress, save, Select, Slider } from './components';
import { adapter, callback, engine, generation, interrupt } from './engine';
import { recordWebm } from './webm';
import type { Download, ModelSource } from './worker/models';
import type { ModelInfo, ModelPlan, RunResult, SampleSettings, StepInfo } from './worker/sample';
import type { Quantity } from './worker/trajectory';

/** The model that the Sample tab has loaded. */
export const model = signal<ModelInfo | undefined>(undefined);
/** Where it came from, so that another worker can load it; the model in training is gone with its worker. */
let origin: ModelSource | undefined;
generation.subscribe(() => (model.value = undefined));

const schedulers = [
  ['own', 'the model’s own'],
  ['ddpm', 'DDPM'],
  ['ddim', 'DDIM'],
  ['pndm', 'PNDM'],
  ['lms', 'LMS'],
  ['heun', 'Heun'],
  ['euler', 'Euler'],
  ['euler_a', 'Euler ancestral'],
  ['dpmpp', 'DPM-Solver++'],
  ['unipc', 'UniPC'],
] as const;

/** Of the bundled scenes, and of large models. */
const examplePrompts = ['two threes side by side', 'a lighthouse at dawn, oil on canvas'] as const;

const settings = signal<SampleSettings>({ scheduler: 'own', steps: 25, guidance: 1.5, seed: 7, count: 16, labels: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], prompt: '', negativePrompt: '', towards: undefined });
const set = (change: Partial<SampleSettings>): void => void (settings.value = { ...settings.value, ...change });

/** Shows a model that the worker has loaded. */
export function adopt(info: ModelInfo): void {
  // Software adapters draw a few digits in the time in which a GPU draws a gallery.
  const slow = adapter.value !== undefined && 'kind' in adapter.value && adapter.value.kind === 'software';
  model.value = info;
  origin = undefined;
  set({
    ...(slow && { steps: 8 }),
    guidance: info.guidance ?? 1,
    labels: info.condition === 'labels' ? info.classes.map((_, i) => i).slice(0, 10) : [],
    count: info.size[0] > 64 ? 1 : slow ? 4 : 16,
    ...(info.condition === 'prompt' && ['', ...examplePrompts].includes(settings.value.prompt) && { prompt: examplePrompts[/scenes/.test(info.name) ? 0 : 1] }),
  });
}

function ModelPicker({ onReady }: { onReady: () => void }) {
  const kind = useSignal<'digits' | 'scenes' | 'hub' | 'url' | 'files'>(origin?.kind === 'bundled' ? origin.model : origin && origin.kind !== 'memory' ? origin.kind : 'digits');
  const text = useSignal(origin?.kind === 'hub' ? origin.id : origin?.kind === 'url' ? origin.url : '');
  const files = useSignal<readonly File[]>(origin?.kind === 'files' ? origin.files : []);
  const plan = useSignal<ModelPlan | undefined>(undefined);
  const download = useSignal<Download | undefined>(undefined);
  const busy = useSignal(false);
  const problem = useSignal('');
  const source = (): ModelSource =>
    kind.value === 'digits' || kind.value === 'scenes' ? { kind: 'bundled', model: kind.value } : kind.value === 'files' ? { kind: 'files', files: files.value } : kind.value === 'hub' ? { kind: 'hub', id: text.value } : { kind: 'url', url: text.value };

  const attempt = async (work: () => Promise<void>): Promise<void> => {
    problem.value = '';
    busy.value = true;
    try {
      await work();
    } catch (e) {
      problem.value = message(e);
    } finally {
      busy.value = false;
      download.value = undefined;
    }
  };
  const look = () => attempt(async () => void (plan.value = await (await engine()).sample.plan(source(), settings.value.count)));
  const load = () =>
    attempt(async () => {
      const from = source();
      adopt(await fetched(from));
      origin = from;
      plan.value = undefined;
      onReady();
    });
  const fetched = async (from: ModelSource) => (await engine()).sample.load(from, callback((d: Download) => void (download.value = d)));
  useEffect(() => {
    if (model.value) return;
    // After a failure nothing runs by itself: it might fail again.
    if (generation.value === 0) void load();
    else void attempt(async () => (origin ? void (model.value = await fetched(origin)) : adopt(await fetched(source()))));
  }, []);

  return (
    <fieldset>
      <legend>Model</legend>
      <Select
        label="From"
        value={kind.value}
        options={[
          ['digits', 'Bundled: digits by label'],
          ['scenes', 'Bundled: scenes of digits by prompt'],
          ['hub', 'Hugging Face Hub'],
          ['url', 'Web address'],
          ['files', 'Folder on this device'],
        ]}
        onChange={(value) => {
          kind.value = value;
          plan.value = undefined;
          problem.value = '';
          if (value === 'digits' || value === 'scenes') void load();
        }}
      />
      {(kind.value === 'hub' || kind.value === 'url') && (
        <Field label={kind.value === 'hub' ? 'Id on the Hub' : 'Address of the folder'} hint="A folder in diffusers’ layout, with model_index.json.">
          {(id) => (
            <input
              id={id}
              type="text"
              spellcheck={false}
              placeholder={kind.value === 'hub' ? 'google/ddpm-cifar10-32' : 'https://example.org/model/'}
              value={text.value}
              onInput={(e) => (text.value = e.currentTarget.value)}
              onKeyDown={(e) => e.key === 'Enter' && void look()}
            />
          )}
        </Field>
      )}
      {kind.value === 'files' && (
        <Field label="Folder">{(id) => <input id={id} type="file" multiple {...{ webkitdirectory: true }} onChange={(e) => ((files.value = [...(e.currentTarget.files ?? [])]), void look())} />}</Field>
      )}
      {(kind.value === 'hub' || kind.value === 'url' || kind.value === 'files') && !plan.value && (
        <button type="button" disabled={busy.value || (kind.value === 'files' ? files.value.length === 0 : text.value.trim() === '')} onClick={() => void look()}>
          Look at it first
        </button>
      )}
      {plan.value && (
        <div class="plan">
          <p>
            <strong>{plan.value.name}</strong>, {plan.value.pipeline}
          </p>
          <dl>
            <dt>to download</dt>
            <dd>{plan.value.downloadBytes ? bytes(plan.value.downloadBytes) : 'nothing'}</dd>
            <dt>weights on the GPU</dt>
            <dd>{plan.value.weightBytes ? bytes(plan.value.weightBytes) : 'known after loading'}</dd>
            <dt>one step of {plan.value.batch}</dt>
            <dd>{plan.value.activationBytes === undefined ? 'planned stage by stage' : bytes(plan.value.activationBytes)}</dd>
            <dt>adapter binds at most</dt>
            <dd>{bytes(plan.value.bindingLimit)}</dd>
          </dl>
          <Problem>{plan.value.problem}</Problem>
          <button type="button" class="primary" disabled={busy.value} onClick={() => void load()}>
            {plan.value.downloadBytes ? `Download and load` : 'Load'}
          </button>
        </div>
      )}
      {download.value && <Progress value={download.value.done} max={download.value.total} label={downloadLabel(download.value)} />}
      <Problem>{problem.value}</Problem>
      {model.value && !busy.value && (
        <p class="quiet">
          {model.value.name}
          {model.value.weights > 0 && `: ${model.value.weights.toLocaleString('en')} weights`}, {model.value.size[1]}×{model.value.size[0]}
        </p>
      )}
    </fieldset>
  );
}

function Labels({ classes }: { classes: readonly string[] }) {
  const { labels } = settings.value;
  if (classes.length > 40) {
    return (
      <Field label="Labels" hint={`Numbers from 0 to ${classes.length - 1}, with commas between.`}>
        {(id) => <input id={id} type="text" value={labels.join(', ')} onChange={(e) => set({ labels: e.currentTarget.value.split(',').map(Number).filter((n) => Number.isInteger(n) && n >= 0 && n < classes.length) })} />}
      </Field>
    );
  }
  return (
    <div class="field">
      <span class="label">Labels</span>
      <div class="chips" role="group" aria-label="Labels">
        {classes.map((name, i) => (
          <button key={i} type="button" aria-pressed={labels.includes(i)} onClick={() => set({ labels: labels.includes(i) ? (labels.length > 1 ? labels.filter((l) => l !== i) : labels) : [...labels, i].sort((a, b) => a - b) })}>
            {name}
          </button>
        ))}
      </div>
    </div>
  );
}

interface Side {
  readonly info: StepInfo | undefined;
  readonly result: RunResult | undefined;
}

const quantities = [
  ['sample', <>x<sub>t</sub></>],
  ['x0', <>predicted x<sub>0</sub></>],
  ['epsilon', <>ε</>],
] as const;

const number = (x: number): string => (Number.isFinite(x) ? (Math.abs(x) >= 1000 || (x !== 0 && Math.abs(x) < 0.001) ? x.toExponential(2) : x.toPrecision(3)) : '∞');

export function Sample() {
  const sides = useSignal<readonly Side[]>([{ info: undefined, result: undefined }]);
  const other = useSignal<SampleSettings['scheduler'] | 'none'>('none');
  const quantity = useSignal<Quantity>('x0');
  const step = useSignal(0);
  const running = useSignal(false);
  const saving = useSignal(false);
  const problem = useSignal('');
  const s = settings.value;
  const info = model.value;
  const names = other.value === 'none' ? ['sample-a'] : ['sample-a', 'sample-b'];
  const [first] = sides.value;

  /** Settles when no run is in progress. */
  const ended = useRef(Promise.resolve());
  const run = (): void => {
    if (!running.value) ended.current = sampled();
  };
  /** The worker ends the runs of the model before: what they made is gone. */
  const afterLoading = async (): Promise<void> => {
    await ended.current;
    sides.value = [{ info: undefined, result: undefined }];
    run();
  };
  const sampled = async (): Promise<void> => {
    problem.value = '';
    running.value = true;
    try {
      const worker = await engine();
      const each = names.map(async (name, i) => {
        const result = await worker.sample.run(
          name,
          i === 1 && other.value !== 'none' ? { ...settings.value, scheduler: other.value } : settings.value,
          quantity.value,
          callback((at: StepInfo) => update(i, { info: at })),
        );
        update(i, { result, info: result.info });
      });
      await Promise.all(each);
    } catch (e) {
      if (!/aborted/.test(message(e))) problem.value = message(e);
    } finally {
      running.value = false;
    }
  };
  const update = (i: number, change: Partial<Side>): void => {
    const next = [...sides.value];
    next[i] = { ...(next[i] ?? { info: undefined, result: undefined }), ...change };
    sides.value = next;
    if (i === 0 && change.info) step.value = change.info.step;
  };
  const stop = () => interrupt((worker) => worker.sample.stop());
  /** Shows one moment of every trajectory; those of other lengths at the same share of the way. */
  const scrub = async (to: number, what: Quantity): Promise<void> => {
    step.value = to;
    quantity.value = what;
    if (running.value || !first?.info) return;
    try {
      const worker = await engine();
      for (const [i, name] of names.entries()) {
        const total = sides.value[i]?.info?.total;
        if (total === undefined) continue;
        const at = await worker.sample.show(name, Math.round((to / first.info.total) * total), what);
        update(i, { info: at });
      }
    } catch (e) {
      problem.value = message(e);
    }
  };
  const exportAs = async (kind: 'png' | 'gif' | 'webm'): Promise<void> => {
    problem.value = '';
    saving.value = true;
    try {
      const { sample } = await engine();
      const data = kind === 'png' ? await sample.png('sample-a') : kind === 'gif' ? await sample.gif('sample-a', quantity.value) : await recordWebm(await sample.frames('sample-a', quantity.value));
      save(`bruit-${settings.value.seed}.${kind}`, data, kind === 'webm' ? 'video/webm' : `image/${kind}`);
    } catch (e) {
      problem.value = message(e);
    } finally {
      saving.value = false;
    }
  };
  const done = first?.result && !running.value && !saving.value;

  return (
    <div class="split">
      <form
        class="panel"
        onSubmit={(e) => {
          e.preventDefault();
          run();
        }}
      >
        <ModelPicker onReady={() => void afterLoading()} />
        <fieldset>
          <legend>Sampling</legend>
          <Select label="Scheduler" value={s.scheduler} options={schedulers} onChange={(scheduler) => set({ scheduler })} />
          <Select label="Compare with" value={other.value} options={[['none', 'nothing'], ...schedulers]} onChange={(value) => (other.value = value)} />
          <Slider label="Steps" value={s.steps} min={1} max={200} onChange={(steps) => set({ steps })} />
          {info?.guidance !== undefined && <Slider label="Guidance" value={s.guidance} min={0} max={info.latent ? 20 : 6} step={0.1} onChange={(guidance) => set({ guidance })} hint="1 is none." />}
          <Slider label="Images" value={s.count} min={1} max={info?.latent ? 4 : 64} onChange={(count) => set({ count })} />
          <Field label="Seed">
            {(id) => (
              <div class="slider">
                <button type="button" onClick={() => set({ seed: Math.floor(Math.random() * 1e6) })}>
                  Another
                </button>
                <input id={id} type="number" min={0} step={1} value={s.seed} onChange={(e) => set({ seed: Math.max(0, Math.round(e.currentTarget.valueAsNumber || 0)) })} />
              </div>
            )}
          </Field>
          <label class="check">
            <input type="checkbox" checked={s.towards !== undefined} onChange={(e) => set({ towards: e.currentTarget.checked ? s.seed + 1 : undefined })} />
            Walk to another seed
          </label>
          {s.towards !== undefined && (
            <Field label="Last seed" hint={`The images lie on the great circle between the two seeds’ noises${info?.condition === 'labels' ? ', all with the first label' : ''}.`}>
              {(id) => <input id={id} type="number" min={0} step={1} value={s.towards} onChange={(e) => set({ towards: Math.max(0, Math.round(e.currentTarget.valueAsNumber || 0)) })} />}
            </Field>
          )}
          {info?.condition === 'labels' && <Labels classes={info.classes} />}
          {info?.condition === 'prompt' && (
            <>
              <Field label="Prompt">{(id) => <textarea id={id} rows={3} value={s.prompt} onInput={(e) => set({ prompt: e.currentTarget.value })} />}</Field>
              <Field label="Not">{(id) => <textarea id={id} rows={2} value={s.negativePrompt} onInput={(e) => set({ negativePrompt: e.currentTarget.value })} />}</Field>
            </>
          )}
        </fieldset>
        <div class="actions">
          <button type="submit" class="primary" disabled={!info || running.value}>
            Sample
          </button>
          <button type="button" disabled={!running.value} onClick={() => void stop()}>
            Stop
          </button>
        </div>
      </form>
      <div class="stage">
        <Problem>{problem.value}</Problem>
        <div class="pictures">
          {names.map((name, i) => (
            <figure key={name}>
              <GpuCanvas name={name} label={`${s.count} images, ${i ? 'second' : 'first'} scheduler`} size={sides.value[i]?.info?.size} />
              <figcaption aria-live="polite">
                {sides.value[i]?.result && !running.value
                  ? `${sides.value[i].result.scheduler}: ${sides.value[i].result.evaluations} evaluations in ${(sides.value[i].result.milliseconds / 1000).toFixed(2)} s`
                  : running.value
                    ? sides.value[i]?.info
                      ? sides.value[i].info.decoded
                        ? `decoded ${sides.value[i].info.decoded.join(' of ')}`
                        : `step ${sides.value[i].info.step} of ${sides.value[i].info.total}`
                      : 'compiling…'
                    : ''}
              </figcaption>
            </figure>
          ))}
        </div>
        {first?.info && (
          <div class="scrub">
            <Choice label="What is shown" value={quantity.value} options={quantities} onChange={(what) => void scrub(step.value, what)} />
            <input type="range" aria-label="Step of the trajectory" min={0} max={first.info.total} value={step.value} disabled={running.value} onInput={(e) => void scrub(e.currentTarget.valueAsNumber, quantity.value)} />
            <dl class="readout">
              <div>
                <dt>step</dt>
                <dd>
                  {first.info.step} of {first.info.total}
                </dd>
              </div>
              <div>
                <dt>t</dt>
                <dd>{number(first.info.timestep)}</dd>
              </div>
              <div>
                <dt>signal</dt>
                <dd>{number(first.info.signal)}</dd>
              </div>
              <div>
                <dt>noise</dt>
                <dd>{number(first.info.noise)}</dd>
              </div>
              <div>
                <dt>SNR</dt>
                <dd>{number(first.info.snr)}</dd>
              </div>
            </dl>
          </div>
        )}
        <div class="actions">
          <button type="button" disabled={!done} onClick={() => void exportAs('png')}>
            Save PNG
          </button>
          <button type="button" disabled={!done} onClick={() => void exportAs('gif')}>
            Save trajectory as GIF
          </button>
          <button type="button" disabled={!done} onClick={() => void exportAs('webm')}>
            Save trajectory as WebM
          </button>
        </div>
      </div>
    </div>
  );
}
