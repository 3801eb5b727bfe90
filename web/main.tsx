/** The page: tabs, and the notice where WebGPU is missing. */
import { signal } from '@preact/signals';
import { render, type ComponentType } from 'preact';
import { useEffect } from 'preact/hooks';
import { Bench } from './bench';
import { NoWebGpu } from './components';
import { adapter, engine, generation, replaced } from './engine';
import { Inside } from './inside';
import { Sample } from './sample';
import { Tour } from './tour';
import { Train } from './train';

const tabs: Readonly<Record<string, { readonly title: string; readonly view: ComponentType }>> = {
  sample: { title: 'Sample', view: Sample },
  train: { title: 'Train', view: Train },
  inside: { title: 'Inside', view: Inside },
  bench: { title: 'Bench', view: Bench },
  tour: { title: 'Tour', view: Tour },
};

const fromHash = (): string => (location.hash.slice(1).split('/')[0]! in tabs ? location.hash.slice(1).split('/')[0]! : 'sample');
const current = signal(fromHash());
/** Tabs keep their state once they were opened. */
const opened = signal<ReadonlySet<string>>(new Set([current.value]));

addEventListener('hashchange', () => show(fromHash()));

function show(name: string): void {
  current.value = name;
  opened.value = new Set([...opened.value, name]);
  document.title = `${tabs[name]!.title} – bruit`;
}

/** Arrow keys go from tab to tab, as in the ARIA pattern. */
function onKey(event: KeyboardEvent): void {
  const names = Object.keys(tabs);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const target = step !== undefined ? names[(names.indexOf(current.value) + step + names.length) % names.length] : { Home: names[0], End: names.at(-1) }[event.key];
  if (!target) return;
  event.preventDefault();
  location.hash = target;
  document.getElementById(`tab-${target}`)?.focus();
}

function Adapter() {
  const found = adapter.value;
  if (!found) return <span class="adapter">Looking for a GPU…</span>;
  if ('error' in found) return <span class="adapter">No WebGPU</span>;
  return (
    <span class="adapter" title={`${found.f16 ? 'shader-f16' : 'no shader-f16'}, ${found.timestamps ? 'timestamp-query' : 'no timestamp-query'}`}>
      {found.name}
      {found.kind === 'software' && ' (software, slow)'}
    </span>
  );
}

/** What happened to the worker before this one. */
function Replaced() {
  return (
    <div class="notice" role="alert">
      <p>
        <strong>{replaced.value}</strong> The page has begun anew{adapter.value && 'name' in adapter.value && <> on {adapter.value.name}</>}: sample again; a training run that was going on carries on in the Train tab from where it was last kept.
      </p>
      <div class="actions">
        <button type="button" onClick={() => (replaced.value = '')}>
          Close
        </button>
      </div>
    </div>
  );
}

function App() {
  // Another worker has another device, and nothing of what the tabs were told of the one before.
  useEffect(() => void engine().catch(() => undefined), [generation.value]);
  const found = adapter.value;
  return (
    <>
      <header>
        <a class="mark" href="#sample" aria-label="bruit, the playground">
          bruit
        </a>
        <div class="tabs" role="tablist" aria-label="Playground" onKeyDown={onKey}>
          {Object.entries(tabs).map(([name, { title }]) => (
            <button key={name} role="tab" id={`tab-${name}`} aria-selected={current.value === name} aria-controls={`panel-${name}`} tabIndex={current.value === name ? 0 : -1} onClick={() => (location.hash = name)}>
              {title}
            </button>
          ))}
        </div>
        <Adapter />
      </header>
      <main>
        {found && 'error' in found && <NoWebGpu reason={found.error} />}
        {replaced.value && <Replaced />}
        {Object.entries(tabs).map(([name, { view: View }]) => (
          <section key={name} role="tabpanel" id={`panel-${name}`} aria-labelledby={`tab-${name}`} hidden={current.value !== name}>
            {opened.value.has(name) && <View key={generation.value} />}
          </section>
        ))}
      </main>
    </>
  );
}

show(current.value);
render(<App />, document.getElementById('app')!);
// Absent in private windows of some browsers; the page then needs the network on every visit.
if ('serviceWorker' in navigator) void navigator.serviceWorker.register('sw.js').catch(() => undefined);
