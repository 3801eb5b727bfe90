import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { initWasm, Resvg } from '@resvg/resvg-wasm';
import { BruitError, check } from '../engine/errors';
import { fileError } from './files';

/** One line of `metrics.jsonl`; null stands for a value that was not finite. */
export type MetricsRecord = { readonly step: number } & Readonly<Record<string, unknown>>;

/**
 * Reads a `metrics.jsonl`. Steps come out in order, once each: after a resume from an older checkpoint the later record
 * of a step counts. A half-written last line of a killed run is skipped; damage elsewhere is an error with its line.
 */
export async function readMetrics(path: string): Promise<MetricsRecord[]> {
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    throw fileError('read', path, error);
  });
  const bySteps = new Map<number, MetricsRecord>();
  const lines = text.split('\n');
  for (const [i, line] of lines.entries()) {
    if (line.trim() === '') continue;
    let record: Partial<MetricsRecord> | undefined;
    try {
      record = JSON.parse(line) as Partial<MetricsRecord>;
    } catch {
      // A killed run leaves half a line: the last one, or the last one before the resumed run went on.
      if (i === lines.length - 1 || line.startsWith('{"')) continue;
    }
    const step = record?.step;
    if (typeof step !== 'number') throw new BruitError('input', `${path}: line ${i + 1} is not a metrics record with a "step": ${line.slice(0, 60)}`);
    bySteps.set(step, record as MetricsRecord);
  }
  return [...bySteps.values()].sort((a, b) => a.step - b.step);
}

/** Exponential moving average without the start's bias (Adam's correction); NaN is passed through and not averaged. */
export function smoothed(values: ArrayLike<number>, weight: number): Float64Array {
  const out = new Float64Array(values.length);
  let mean = 0;
  let mass = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i]!;
    if (Number.isFinite(value)) {
      mean = weight * mean + (1 - weight) * value;
      mass = weight * mass + (1 - weight);
    }
    out[i] = Number.isFinite(value) ? mean / mass : NaN;
  }
  return out;
}

/** A curve; NaN in `y` breaks it. */
export interface ChartLine {
  readonly name: string;
  readonly x: ArrayLike<number>;
  readonly y: ArrayLike<number>;
  readonly color: string;
  /** Drawn thin and pale, behind the rest: the raw values of a smoothed curve. */
  readonly faint?: boolean;
}

/** One coordinate system; those of a chart are stacked and share the x axis. */
export interface ChartPanel {
  readonly label: string;
  readonly lines: readonly ChartLine[];
  readonly log?: boolean;
  /** Of the plotting area, in CSS pixels. */
  readonly height: number;
}

const WIDTH = 960;
const MARGIN = { left: 84, right: 28, top: 62, bottom: 50, between: 38 } as const;
const PLOT_WIDTH = WIDTH - MARGIN.left - MARGIN.right;
const INK = '#1f2937', MUTED = '#6b7280', GRID = '#e5e7eb';

/** About `count` round numbers covering [from, to]: multiples of 1, 2 or 5 times a power of ten. */
export function linearTicks(from: number, to: number, count: number): number[] {
  const rough = (to - from) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((m) => m * power >= rough * 0.9999) ?? 10);
  const first = Math.ceil(from / step - 1e-9);
  const last = Math.floor(to / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Powers of ten in [from, to], with 2 and 5 times them when that leaves few. */
export function logTicks(from: number, to: number): number[] {
  const decades = Math.log10(to / from);
  const every = Math.max(1, Math.ceil(decades / 6));
  const multiples = decades > 3 ? [1] : decades > 1.3 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
  const ticks: number[] = [];
  for (let p = Math.floor(Math.log10(from)); p <= Math.ceil(Math.log10(to)); p++) {
    if (p % every === 0) ticks.push(...multiples.map((m) => Number((m * 10 ** p).toPrecision(12))));
  }
  return ticks.filter((t) => t >= from * 0.9999 && t <= to * 1.0001);
}

function tickText(value: number): string {
  const size = Math.abs(value);
  if (size === 0) return '0';
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(6))}M`;
  if (size >= 1e3) return `${Number((value / 1e3).toPrecision(6))}k`;
  if (size < 1e-3) return value.toExponential().replace('e-', 'e−');
  return String(Number(value.toPrecision(6)));
}

const escapeXml = (text: string): string => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

/** Path data of a curve. Where several points share a pixel column, its first, least, greatest and last stay: the shape at a hundred thousand steps without their size. */
function pathData(line: ChartLine, toX: (x: number) => number, toY: (y: number) => number): string {
  let data = '';
  let pen = 'M';
  let column: { x: number; y: number }[] = [];
  const flush = (): void => {
    const least = column.reduce((a, b) => (b.y < a.y ? b : a), column[0]!);
    const most = column.reduce((a, b) => (b.y > a.y ? b : a), column[0]!);
    const kept = new Set([column[0]!, least, most, column.at(-1)!]);
    for (const point of column) {
      if (!kept.has(point)) continue;
      data += `${pen}${point.x.toFixed(1)} ${point.y.toFixed(1)}`;
      pen = 'L';
    }
    column = [];
  };
  for (let i = 0; i < line.x.length; i++) {
    const x = toX(line.x[i]!);
    const y = toY(line.y[i]!);
    if (column.length > 0 && (!Number.isFinite(y) || Math.floor(x) !== Math.floor(column[0]!.x))) flush();
    if (Number.isFinite(y)) column.push({ x, y });
    else pen = 'M';
  }
  if (column.length > 0) flush();
  return data;
}

/** The greatest share of a curve's points that may lie above the axis: a few spikes should not flatten all the rest. */
const OUTLIERS = 0.002;

function valueRange(panel: ChartPanel): [number, number] {
  const usable = (y: number): boolean => Number.isFinite(y) && (!panel.log || y > 0);
  const values = panel.lines.flatMap((l) => Array.from(l.y).filter(usable)).sort((a, b) => a - b);
  if (values.length === 0) return panel.log ? [0.1, 1] : [0, 1];
  let low = values[0]!;
  let high = values[Math.ceil((values.length - 1) * (1 - OUTLIERS))]!;
  for (const line of panel.lines) if (!line.faint) for (const y of Array.from(line.y).filter(usable)) high = Math.max(high, y); // a solid curve is never cut
  if (panel.log) {
    const spread = Math.max(high / low, 1.2) ** 0.04;
    return [low / spread, high * spread];
  }
  if (low >= 0 && low < 0.5 * high) low = 0;
  const space = (high - low || Math.abs(high) || 1) * 0.05;
  return [low === 0 ? 0 : low - space, high + space];
}

/** A chart as SVG. Text is in the font family `Inter`. */
export function chartSvg(chart: { title: string; subtitle?: string; xLabel: string; panels: readonly ChartPanel[] }): string {
  const xs = chart.panels.flatMap((p) => p.lines.flatMap((l) => (l.x.length > 0 ? [l.x[0]!, l.x[l.x.length - 1]!] : [])));
  const xLow = Math.min(...xs);
  const xHigh = Math.max(...xs, xLow + 1);
  const toX = (x: number): number => MARGIN.left + (PLOT_WIDTH * (x - xLow)) / (xHigh - xLow);
  const xTicks = linearTicks(xLow, xHigh, 9).filter(Number.isInteger);

  let y0 = MARGIN.top;
  const parts: string[] = [];
  const text = (x: number, y: number, content: string, attributes: string): number => parts.push(`<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${attributes}>${escapeXml(content)}</text>`);
  text(MARGIN.left, 28, chart.title, `font-size="19" fill="${INK}"`);
  if (chart.subtitle) text(WIDTH - MARGIN.right, 28, chart.subtitle, `font-size="12.5" fill="${MUTED}" text-anchor="end"`);
  chart.panels.forEach((panel, index) => {
    const [low, high] = valueRange(panel);
    const bottom = y0 + panel.height;
    const scale = panel.log ? Math.log : (v: number) => v;
    const toY = (y: number): number => (panel.log && y <= 0 ? NaN : bottom - (panel.height * (scale(y) - scale(low))) / (scale(high) - scale(low)));
    const isLast = index === chart.panels.length - 1;

    for (const tick of panel.log ? logTicks(low, high) : linearTicks(low, high, Math.max(4, panel.height / 50))) {
      parts.push(`<path d="M${MARGIN.left} ${toY(tick).toFixed(1)}h${PLOT_WIDTH}" stroke="${GRID}"/>`);
      text(MARGIN.left - 10, toY(tick) + 4.5, tickText(tick), `fill="${MUTED}" text-anchor="end"`);
    }
    for (const tick of xTicks) {
      parts.push(`<path d="M${toX(tick).toFixed(1)} ${bottom}v5" stroke="${MUTED}"/>`);
      if (isLast) text(toX(tick), bottom + 21, tickText(tick), `fill="${MUTED}" text-anchor="middle"`);
    }
    parts.push(`<path d="M${MARGIN.left} ${bottom}h${PLOT_WIDTH}" stroke="${MUTED}"/>`);
    parts.push(`<clipPath id="panel${index}"><rect x="${MARGIN.left - 2}" y="${y0 - 2}" width="${PLOT_WIDTH + 8}" height="${panel.height + 6}"/></clipPath><g clip-path="url(#panel${index})" fill="none" stroke-linejoin="round" stroke-linecap="round">`);
    for (const line of [...panel.lines].sort((a, b) => Number(b.faint ?? false) - Number(a.faint ?? false))) {
      parts.push(`<path d="${pathData(line, toX, toY)}" stroke="${line.color}" ${line.faint ? 'stroke-width="1" stroke-opacity="0.28"' : 'stroke-width="2"'}/>`);
      const last = Array.from(line.y).findLastIndex((y) => Number.isFinite(toY(y)));
      if (!line.faint && last >= 0) parts.push(`<circle cx="${toX(line.x[last]!).toFixed(1)}" cy="${toY(line.y[last]!).toFixed(1)}" r="3.5" fill="${line.color}"/>`);
    }
    parts.push('</g>');
    text(MARGIN.left, y0 - 10, panel.label + (panel.log ? ' (log scale)' : ''), `fill="${INK}"`);
    let x = WIDTH - MARGIN.right;
    for (const line of panel.lines.length > 1 ? [...panel.lines].reverse() : []) {
      text(x, y0 - 10, line.name, `fill="${MUTED}" text-anchor="end" font-size="12.5"`);
      x -= line.name.length * 6.7 + 8; // about Inter's mean width; the swatch needs no more precision
      parts.push(`<path d="M${(x - 16).toFixed(1)} ${y0 - 14.5}h16" stroke="${line.color}" ${line.faint ? 'stroke-width="2" stroke-opacity="0.35"' : 'stroke-width="2.5"'}/>`);
      x -= 34;
    }
    y0 = bottom + MARGIN.between;
  });
  const height = y0 - MARGIN.between + MARGIN.bottom;
  text(MARGIN.left + PLOT_WIDTH / 2, height - 9, chart.xLabel, `fill="${INK}" text-anchor="middle"`);
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" font-family="Inter" font-size="13"><rect width="100%" height="100%" fill="white"/>${parts.join('')}</svg>`;
}

let rasteriser: Promise<Uint8Array> | undefined;

/** Rasterises SVG to PNG bytes with resvg (WebAssembly) and the Inter font, both from npm: no browser, no system fonts. `zoom` 2 suits dense screens. */
export async function renderSvg(svg: string, zoom = 2): Promise<Uint8Array> {
  rasteriser ??= (async () => {
    const require = createRequire(import.meta.url);
    await initWasm(await readFile(require.resolve('@resvg/resvg-wasm/index_bg.wasm')));
    return readFile(require.resolve('@fontsource-variable/inter/files/inter-latin-wght-normal.woff2'));
  })();
  const font = await rasteriser;
  const resvg = new Resvg(svg, { fitTo: { mode: 'zoom', value: zoom }, font: { fontBuffers: [font], defaultFontFamily: 'Inter' } });
  try {
    const image = resvg.render();
    const png = image.asPng();
    image.free();
    return png;
  } finally {
    resvg.free();
  }
}

export interface PlotOptions {
  readonly title?: string;
  /** Small text at the top right: model, adapter, … */
  readonly subtitle?: string;
  /** Weight of the past in the smoothed loss, 0 to 1; default grows with the run: about its last hundredth is averaged, at least 8 records unless it is short. */
  readonly smoothing?: number;
  /** Logarithmic loss axis; default: when the smoothed loss spans more than a factor of 8. */
  readonly log?: boolean;
}

/** Metrics that get a panel below the loss, where the records have them. */
const SIDE_PANELS = [
  { key: 'lr', label: 'learning rate', color: '#0d9488', smooth: false },
  { key: 'grad_norm', label: 'gradient norm', color: '#d97706', smooth: true },
] as const;

/** Draws a training run, PNG bytes: loss raw and smoothed (and `eval_loss`), then `lr` and `grad_norm` where recorded. */
export async function plotMetrics(records: readonly MetricsRecord[], options: PlotOptions = {}): Promise<Uint8Array> {
  const series = (key: string): { x: number[]; y: number[] } => {
    const present = records.filter((r) => key in r);
    return { x: present.map((r) => r.step), y: present.map((r) => (typeof r[key] === 'number' ? r[key] : NaN)) };
  };
  const loss = series('loss');
  check(loss.x.length > 0, 'input', () => 'no loss to plot: the metrics have no record with "loss".');
  const count = loss.x.length;
  const weight = options.smoothing ?? 1 - 1 / Math.max(1, count / 100, Math.min(8, count / 8));
  check(weight >= 0 && weight < 1, 'input', () => `smoothing ${weight}: must be at least 0 and below 1.`);
  const smoothLoss = Array.from(smoothed(loss.y, weight));
  const positive = smoothLoss.filter((v) => v > 0);
  const log = options.log ?? (positive.length > 0 && positive.reduce((a, b) => Math.max(a, b)) > 8 * positive.reduce((a, b) => Math.min(a, b)));

  const lines: ChartLine[] = [
    { name: 'raw', ...loss, color: '#2563eb', faint: true },
    { name: 'smoothed', x: loss.x, y: smoothLoss, color: '#2563eb' },
  ];
  const evaluation = series('eval_loss');
  if (evaluation.x.length > 0) lines.push({ name: 'held back', ...evaluation, color: '#dc2626' });
  const panels: ChartPanel[] = [{ label: 'loss', lines, log, height: 330 }];
  for (const { key, label, color, smooth } of SIDE_PANELS) {
    const values = series(key);
    if (values.x.length === 0) continue;
    const own: ChartLine[] = smooth
      ? [{ name: 'raw', ...values, color, faint: true }, { name: 'smoothed', x: values.x, y: smoothed(values.y, weight), color }]
      : [{ name: key, ...values, color }];
    panels.push({ label, lines: own, height: 110 });
  }
  const last = [...smoothLoss].reverse().find(Number.isFinite);
  const subtitle = [options.subtitle, last === undefined ? '' : `final loss ${last.toPrecision(4)} (smoothed)`].filter(Boolean).join('  ·  ');
  return renderSvg(chartSvg({ title: options.title ?? 'Training', subtitle, xLabel: 'step', panels }));
}
