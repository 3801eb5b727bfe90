/** The Train tab. */
import { signal, useSignal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { bytes, Choice, Field, GpuCanvas, message, Plot, Problem, Progress, save, Select, Slider } from './components';
import { adapter, callback, engine, interrupt } from './engine';
import { adopt } from './sample';
import type { StepMetrics } from '../src/train/step';
import type { StoredRun, TrainEvent, TrainSettings } from './worker/train';
import type { CanvasSize } from './worker/view';

const defaults: TrainSettings = { data: 'mnist', size: 'medium', pixels: 32, grey: false, steps: 1000, batch: 32, learningRate: 0.002, every: 100, seed: 0 };
/** What a CPU does in minutes. */
const softwareDefaults = { size: 'small', batch: 8, steps: 200, every: 20 } as const;
const settings = signal(defaults);
const set = (change: Partial<TrainSettings>): void => void (settings.value = { ...settings.value, ...change });

type State = 'idle' | 'preparing' | 'running' | 'paused' | 'done';

/** Exponential mean, as the eye wants losses. */
function smooth(values: readonly number[], keep = 0.95): number[] {
  let [sum, weight] = [0, 0];
  return values.map((v) => {
    sum = keep * sum + (1 - keep) * v;
    weight = keep * weight + (1 - keep);
    return sum / weight;
  });
}

/** At most so many points: every n-th. */
const thin = <T,>(rows: readonly T[], most = 2000): readonly T[] => (rows.length <= most ? rows : rows.filter((_, i) => i % Math.ceil(rows.length / most) === 0));

export function Train() {
  const state = useSignal<State>('idle');
  const rows = useSignal<readonly StepMetrics[]>([]);
  const ready = useSignal<Extract<TrainEvent, { kind: 'ready' }> | undefined>(undefined);
  const picture = useSignal<{ step: number; size: CanvasSize | undefined } | undefined>(undefined);
  const saved = useSignal<Extract<TrainEvent, { kind: 'saved' }> | undefined>(undefined);
  const stored = useSignal<StoredRun | undefined>(undefined);
  const images = useSignal(0);
  const decoding = useSignal<readonly [number, number] | undefined>(undefined);
  const over = useSignal(false);
  const problem = useSignal('');
  const s = settings.value;
  const busy = state.value === 'running' || state.value === 'preparing';

  useEffect(() => {
    void engine().then(
      async (worker) => {
        if (adapter.value && 'kind' in adapter.value && adapter.value.kind === 'software') {
          // What the visitor has changed by now stays.
          const changed = Object.entries(settings.value).filter(([key, value]) => value !== defaults[key as keyof TrainSettings]);
          set({ ...softwareDefaults, ...(Object.fromEntries(changed) as Partial<TrainSettings>) });
        }
        try {
          stored.value = await worker.train.stored();
        } catch (e) {
          problem.value = message(e);
        }
      },
      () => undefined,
    );
  }, []);

  const on = (event: TrainEvent): void => {
    if (event.kind === 'ready') {
      ready.value = event;
      state.value = 'running';
    } else if (event.kind === 'metrics') rows.value = [...rows.value, ...event.rows];
    else if (event.kind === 'samples') picture.value = event;
    else saved.value = event;
  };
  const follow = async (work: () => Promise<void>): Promise<void> => {
    problem.value = '';
    try {
      await work();
      state.value = ready.value && rows.value.length >= ready.value.steps ? 'done' : 'paused';
    } catch (e) {
      problem.value = message(e);
      state.value = ready.value ? 'paused' : 'idle';
    }
  };
  const begin = (fresh: boolean, checkpoint?: File) =>
    follow(async () => {
      state.value = 'preparing';
      rows.value = [];
      if (!fresh && !checkpoint && stored.value) settings.value = stored.value.settings;
      stored.value = undefined;
      await (await engine()).train.begin(fresh ? settings.value : undefined, 'train-samples', callback(on), checkpoint);
    });
  const go = () =>
    follow(async () => {
      state.value = 'running';
      await (await engine()).train.go('train-samples', callback(on));
    });
  const pause = () => interrupt((worker) => worker.train.pause());
  const choose = (files: Iterable<File>) =>
    follow(async () => {
      const worker = await engine();
      images.value = await worker.train.useImages([...files], s.pixels, s.grey, callback((done, total) => (decoding.value = done < total ? [done, total] : undefined)));
      set({ data: 'images' });
      state.value = 'idle';
    });

  const thinned = thin(rows.value);
  const steps = thinned.map((r) => r.step);
  const last = rows.value.at(-1);
  return (
    <div class="split">
      <form
        class="panel"
        onSubmit={(e) => {
          e.preventDefault();
          void begin(true);
        }}
      >
        {stored.value && (
          <div class="plan">
            <p>
              A run of {stored.value.settings.data === 'mnist' ? 'MNIST' : 'your images'} stands at step {stored.value.step} of {stored.value.settings.steps}.
            </p>
            <div class="actions">
              <button type="button" class="primary" onClick={() => void begin(false)}>
                Carry on
              </button>
              <button type="button" onClick={() => void engine().then((w) => w.train.discard()).then(() => (stored.value = undefined))}>
                Discard it
              </button>
            </div>
          </div>
        )}
        <fieldset disabled={busy}>
          <legend>Data</legend>
          <Choice
            label="Data"
            value={s.data}
            options={[
              ['mnist', 'MNIST digits'],
              ['images', 'Your images'],
            ]}
            onChange={(data) => set({ data })}
          />
          {s.data === 'images' && (
            <>
              <Select
                label="Brought to"
                value={`${s.pixels}${s.grey ? ' grey' : ''}`}
                options={[
                  ['28 grey', '28×28, grey'],
                  ['32', '32×32'],
                  ['64', '64×64'],
                ]}
                onChange={(v) => set({ pixels: parseInt(v) as 28 | 32 | 64, grey: v.endsWith('grey') })}
              />
              <div
                class={`drop${over.value ? ' over' : ''}`}
                onDragOver={(e) => {
                  e.preventDefault();
                  over.value = true;
                }}
                onDragLeave={() => (over.value = false)}
                onDrop={(e) => {
                  e.preventDefault();
                  over.value = false;
                  void choose(e.dataTransfer?.files ?? []);
                }}
              >
                <Field label="Drop pictures here, or choose some">{(id) => <input id={id} type="file" accept="image/*" multiple onChange={(e) => void choose(e.currentTarget.files ?? [])} />}</Field>
                {decoding.value && <Progress value={decoding.value[0]} max={decoding.value[1]} label={`${decoding.value[0]} of ${decoding.value[1]} read`} />}
                {images.value > 0 && <p class="quiet">{images.value} pictures. They stay on this device.</p>}
              </div>
            </>
          )}
        </fieldset>
        <fieldset disabled={busy}>
          <legend>Run</legend>
          <Select
            label="Model"
            value={s.size}
            options={[
              ['small', 'small: 8, 16, 32 channels'],
              ['medium', 'medium: 8, 24, 48, as the bundled one'],
              ['large', 'large: 32, 64, 96'],
            ]}
            onChange={(size) => set({ size })}
          />
          <Slider label="Steps of training" value={s.steps} min={5} max={20000} step={5} onChange={(value) => set({ steps: value })} />
          <Slider label="Batch" value={s.batch} min={1} max={128} onChange={(batch) => set({ batch })} />
          <Field label="Learning rate">{(id) => <input id={id} type="number" min={0} step="any" value={s.learningRate} onChange={(e) => e.currentTarget.valueAsNumber > 0 && set({ learningRate: e.currentTarget.valueAsNumber })} />}</Field>
          <Slider label="Picture and checkpoint every" value={s.every} min={5} max={1000} step={5} onChange={(every) => set({ every })} />
        </fieldset>
        <div class="actions">
          <button type="submit" class="primary" disabled={busy || !adapter.value || 'error' in adapter.value}>
            Train
          </button>
          {state.value === 'running' && (
            <button type="button" onClick={() => void pause()}>
              Pause
            </button>
          )}
          {state.value === 'paused' && ready.value && (
            <button type="button" onClick={() => void go()}>
              Resume
            </button>
          )}
        </div>
        <Field label="Or go on with a run from a file">
          {(id) => (
            <input
              id={id}
              type="file"
              accept=".zip"
              disabled={busy}
              onChange={(e) => {
                const file = e.currentTarget.files?.[0];
                if (file) void begin(false, file);
              }}
            />
          )}
        </Field>
      </form>
      <div class="stage">
        <Problem>{problem.value}</Problem>
        {ready.value && (
          <p class="quiet">
            {ready.value.weights.toLocaleString('en')} weights, {ready.value.images.toLocaleString('en')} images of {ready.value.data}. Activations take {bytes(ready.value.planBytes)}, everything {bytes(ready.value.liveBytes)} of GPU memory.
          </p>
        )}
        {state.value === 'preparing' && <Progress value={0} max={0} label="Compiling the training step" />}
        {ready.value && <Progress value={last ? last.step + 1 : 0} max={ready.value.steps} label={last ? `step ${last.step + 1} of ${ready.value.steps}, loss ${smooth(rows.value.map((r) => r.loss)).at(-1)!.toPrecision(3)}` : `0 of ${ready.value.steps}`} />}
        {rows.value.length > 1 ? (
          <div class="plots">
            <figure>
              <Plot data={[steps, thinned.map((r) => r.loss), thin(smooth(rows.value.map((r) => r.loss)))]} series={[{ label: 'loss', color: '--line-strong' }, { label: 'mean' }]} x="step" y="loss" log />
            </figure>
            <figure>
              <Plot data={[steps, thinned.map((r) => r.gradNorm)]} series={[{ label: 'gradient norm', color: '--second' }]} x="step" y="gradient norm" log />
            </figure>
            <figure>
              <Plot data={[steps, thinned.map((r) => r.learningRate)]} series={[{ label: 'learning rate', color: '--third' }]} x="step" y="learning rate" />
            </figure>
          </div>
        ) : (
          !busy && (
            <p class="lead">
              Training begins from random weights. Each step draws a batch, a time and noise for every image of it, and moves the weights so that the model undoes the noise a little better. The pictures show what the averaged weights
              make of ten always equal seeds.
            </p>
          )
        )}
        <figure class="samples" hidden={!ready.value}>
          <GpuCanvas name="train-samples" label="Samples of the model in training" size={picture.value?.size} />
          <figcaption aria-live="polite">{picture.value ? `after ${picture.value.step} steps` : ''}</figcaption>
        </figure>
        {ready.value && (
          <>
            <div class="actions">
              <button type="button" disabled={busy} onClick={() => void follow(async () => save('bruit-run.zip', await (await engine()).train.checkpoint(), 'application/zip'))}>
                Save checkpoint
              </button>
              <button
                type="button"
                disabled={busy}
                onClick={() =>
                  void follow(async () => {
                    adopt(await (await engine()).sampleTrained());
                    location.hash = 'sample';
                  })
                }
              >
                Sample with it
              </button>
            </div>
            {saved.value && <p class="quiet">{saved.value.problem ?? `Kept in this browser at step ${saved.value.step} (${bytes(saved.value.bytes)}): a reload loses nothing before it.`}</p>}
          </>
        )}
      </div>
    </div>
  );
}
