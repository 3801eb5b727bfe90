/** Small pieces that the tabs share. */
import type { ComponentChildren } from 'preact';
import { useEffect, useId, useLayoutEffect, useRef } from 'preact/hooks';
import UPlot from 'uplot';
import { attach, detach } from './engine';
import type { Download } from './worker/models';
import type { CanvasSize } from './worker/view';

export const bytes = (n: number): string => (n >= 2 ** 30 ? `${(n / 2 ** 30).toFixed(2)} GiB` : n >= 2 ** 20 ? `${(n / 2 ** 20).toFixed(n < 10 * 2 ** 20 ? 1 : 0)} MiB` : `${Math.ceil(n / 1024)} KiB`);
export const message = (e: unknown): string => (e instanceof Error ? e.message : String(e));

/** Saves bytes as a file of the visitor's. */
export function save(name: string, data: Uint8Array | string, type: string): void {
  const url = URL.createObjectURL(new Blob([data as BlobPart], { type }));
  Object.assign(document.createElement('a'), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export function NoWebGpu({ reason }: { reason: string }) {
  return (
    <div class="notice" role="alert">
      <strong>This page computes on your graphics card through WebGPU, which cannot be used here.</strong>
      <p>{reason}</p>
      <p>
        Current Chrome and Edge have it on Windows, macOS, Android and Linux, Safari from version 26, Firefox from 141 on Windows.{' '}
        <a href="https://github.com/gpuweb/gpuweb/wiki/Implementation-Status">Which browsers have WebGPU, and how to turn it on</a>
      </p>
    </div>
  );
}

export function Problem({ children }: { children: ComponentChildren }) {
  return children ? (
    <p class="problem" role="alert">
      {children}
    </p>
  ) : null;
}

export function Field({ label, hint, children }: { label: string; hint?: ComponentChildren; children: (id: string) => ComponentChildren }) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children(id)}
      {hint && <small>{hint}</small>}
    </div>
  );
}

interface NumberProps {
  label: string;
  value: number;
  min: number;
  max: number;
  step?: number;
  onChange: (value: number) => void;
  disabled?: boolean;
  hint?: ComponentChildren;
}

/** A whole or decimal number: a slider, and the number itself to type. */
export function Slider({ label, value, min, max, step = 1, onChange, disabled = false, hint }: NumberProps) {
  const change = (e: Event) => {
    const typed = (e.currentTarget as HTMLInputElement).valueAsNumber;
    if (Number.isFinite(typed)) onChange(Math.min(Math.max(typed, min), max));
  };
  return (
    <Field label={label} hint={hint}>
      {(id) => (
        <div class="slider">
          <input type="range" aria-label={label} min={min} max={max} step={step} value={value} disabled={disabled} onInput={change} />
          <input type="number" id={id} min={min} max={max} step={step} value={value} disabled={disabled} onChange={change} />
        </div>
      )}
    </Field>
  );
}

export function Select<T extends string>({ label, value, options, onChange, disabled = false }: { label: string; value: T; options: readonly (readonly [T, string])[]; onChange: (value: T) => void; disabled?: boolean }) {
  return (
    <Field label={label}>
      {(id) => (
        <select id={id} value={value} disabled={disabled} onChange={(e) => onChange(e.currentTarget.value as T)}>
          {options.map(([key, text]) => (
            <option key={key} value={key}>
              {text}
            </option>
          ))}
        </select>
      )}
    </Field>
  );
}

/** One of a few, as buttons side by side. */
export function Choice<T extends string>({ label, value, options, onChange }: { label: string; value: T; options: readonly (readonly [T, ComponentChildren])[]; onChange: (value: T) => void }) {
  return (
    <div class="choice" role="radiogroup" aria-label={label}>
      {options.map(([key, text]) => (
        <button
          key={key}
          type="button"
          role="radio"
          aria-checked={value === key}
          tabIndex={value === key ? 0 : -1}
          onClick={() => onChange(key)}
          onKeyDown={(e) => {
            const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[e.key];
            if (step === undefined) return;
            e.preventDefault();
            const next = (options.findIndex(([k]) => k === value) + step + options.length) % options.length;
            onChange(options[next]![0]);
            (e.currentTarget.parentElement!.children[next] as HTMLElement).focus();
          }}
        >
          {text}
        </button>
      ))}
    </div>
  );
}

/** A canvas that the worker draws on. */
export function GpuCanvas({ name, label, size }: { name: string; label: string; size: CanvasSize | undefined }) {
  const ref = useRef<HTMLCanvasElement>(null);
  useLayoutEffect(() => {
    const offscreen = ref.current!.transferControlToOffscreen();
    void attach(name, offscreen).catch(() => undefined);
    return () => void detach(name).catch(() => undefined);
  }, [name]);
  return <canvas ref={ref} class="gpu" role="img" aria-label={label} style={size ? { aspectRatio: `${size.width} / ${size.height}` } : { aspectRatio: '1', opacity: 0 }} />;
}

export function Progress({ value, max, label }: { value: number; max: number; label: string }) {
  const id = useId();
  return (
    <div class="progress">
      <progress id={id} value={max > 0 ? value : undefined} max={max || 1} aria-label={label} />
      <span aria-live="off">{label}</span>
    </div>
  );
}

export const downloadLabel = ({ file, done, total }: Download): string => `${file}: ${bytes(done)} of ${bytes(total)}`;

export interface Series {
  readonly label: string;
  /** A custom property of the style sheet. */
  readonly color?: string;
  readonly dash?: number[];
  /** Its own axis, to the right. */
  readonly right?: boolean;
}

/** A line plot; `data` is x and one list for each series. */
export function Plot({ data, series, x, y, height = 180, log = false, points = false }: { data: readonly (readonly (number | null)[])[]; series: readonly Series[]; x: string; y?: string; height?: number; log?: boolean; points?: boolean }) {
  const host = useRef<HTMLDivElement>(null);
  const plot = useRef<UPlot>(undefined);
  useEffect(() => {
    const style = getComputedStyle(document.documentElement);
    const color = (name: string) => style.getPropertyValue(name).trim();
    const axis = { stroke: color('--quiet'), grid: { stroke: color('--line'), width: 1 }, ticks: { stroke: color('--line'), width: 1 }, font: '11px system-ui', labelFont: '11px system-ui', labelSize: 18 };
    plot.current = new UPlot(
      {
        width: host.current!.clientWidth || 320,
        height,
        scales: { x: { time: false }, y: log ? { distr: 3 } : {}, ...(series.some((s) => s.right) && { right: {} }) },
        axes: [{ ...axis, label: x, size: 34 }, { ...axis, size: 56, ...(y && { label: y }) }, ...(series.some((s) => s.right) ? [{ ...axis, scale: 'right', side: 1 as const, grid: { show: false }, size: 56 }] : [])],
        series: [{ label: x }, ...series.map((s) => ({ label: s.label, stroke: color(s.color ?? '--accent'), width: 1.5, points: { show: points }, ...(s.dash && { dash: s.dash }), ...(s.right && { scale: 'right' }) }))],
        legend: { show: series.length > 1 || points },
        cursor: { drag: { x: true, y: false } },
      },
      data as UPlot.AlignedData,
      host.current!,
    );
    const observer = new ResizeObserver(([entry]) => entry!.contentRect.width && plot.current?.setSize({ width: entry!.contentRect.width, height }));
    observer.observe(host.current!);
    return () => {
      observer.disconnect();
      plot.current?.destroy();
    };
  }, [series.map((s) => s.label).join('|'), log, height]);
  useEffect(() => plot.current?.setData(data as UPlot.AlignedData), [data]);
  return <div class="plot" ref={host} role="img" aria-label={`${series.map((s) => s.label).join(', ')} by ${x}`} />;
}
