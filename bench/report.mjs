/**
 * What a race's results say, for people: bench/results/ADAPTER.md, a roofline plot beside it, and the section of the README between its marks.
 *   node bench/report.mjs           all of bench/results/ again, and the README's section
 */
import { existsSync } from 'node:fs';
import { readFile, readdir, writeFile } from 'node:fs/promises';
import { basename, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { root } from '../scripts/build.mjs';
import { median } from './race.mjs';

const ours = 'bruit';

/** File name of an adapter's results. */
export const adapterName = ({ vendor, architecture, device, description }) =>
  [...new Set([description || [vendor, architecture, device].filter(Boolean).join(' ') || 'unknown adapter'])].join(' ').toLowerCase().replace(/[^a-z0-9]+/g, '-').replace(/^-|-$/g, '');

const significant = (x, digits = 3) => (x >= 10 ** digits ? x.toFixed(0) : x.toPrecision(digits));
const usable = (r) => r?.samples?.length > 0;

const table = (head, rows) => [head, head.map((_, i) => (i ? '--:' : '---')), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n');

/** Engines in the order of the first row that has them all, versions with them. */
function enginesOf({ results, bruit }) {
  const versions = new Map([[ours, bruit]]);
  for (const { engines } of Object.values(results)) for (const [name, { version }] of Object.entries(engines)) if (name !== ours && (version || !versions.has(name))) versions.set(name, version ?? '');
  return versions;
}

/** The fastest peer whose numbers are right. */
function bestPeer(engines) {
  const right = Object.entries(engines).filter(([name, r]) => name !== ours && usable(r) && r.verdict === 'ok');
  return right.sort(([, a], [, b]) => a.median_ms - b.median_ms)[0];
}

const cell = (r, show) => (usable(r) ? `${show(r)}${r.verdict === 'ok' ? '' : ' (wrong numbers)'}` : r ? '–' : '');
const mebibytes = (bytes) => significant(bytes / 2 ** 20);

export function markdownTables(record) {
  const versions = enginesOf(record);
  const names = [...versions.keys()];
  const head = [...names.map((name) => `${name} ${versions.get(name)}`.trim())];
  const rows = Object.values(record.results);
  const times = table(
    ['ms a run, median', ...head, 'fastest peer / bruit', 'GFLOP/s', 'of peak'],
    rows.map(({ name, flops, engines }) => {
      const best = bestPeer(engines);
      const own = engines[ours];
      const rate = usable(own) ? flops / own.median_ms / 1e6 : undefined;
      return [
        name,
        ...names.map((each) => cell(engines[each], (r) => (each === ours ? `**${significant(r.median_ms)}**` : significant(r.median_ms)))),
        best && usable(own) ? `${(best[1].median_ms / own.median_ms).toFixed(2)}x` : '',
        rate ? significant(rate) : '',
        rate && record.peak ? `${((rate * 1e11) / record.peak.flops_per_second).toFixed(0)}%` : '',
      ];
    }),
  );
  const large = rows.filter(({ kind }) => kind === 'unet' || kind === 'train');
  const costs = (title, show) => large.map(({ name, engines }) => [`${name}: ${title}`, ...names.map((each) => cell(engines[each], show))]);
  const memory = table(['', ...head], [
    ...costs('peak GPU memory, MiB', (r) => mebibytes(r.peak_bytes)),
    ...costs('dispatches', (r) => String(r.dispatches)),
    ...costs('host time to submit a run, ms', (r) => (r.host_ms === undefined ? '' : r.host_ms.toFixed(2))),
    ...costs('first result with loading and compilation, s', (r) => significant(r.first_result_ms / 1000)),
  ]);
  return { times, memory, large: large.length > 0 };
}

/** What bruit's rows hold, against what their plans say, and what a run costs the host. Empty for records without these numbers. */
function ownTable({ results }) {
  const rows = Object.values(results).flatMap(({ name, engines: { [ours]: r } }) => (usable(r) && r.plan?.all ? [[name, r]] : []));
  if (!rows.length) return [];
  const cells = rows.map(([name, r]) => [
    name,
    mebibytes(r.peak_bytes),
    mebibytes(r.plan.all),
    `${((100 * r.peak_bytes) / r.plan.all - 100).toFixed(1)}%`,
    mebibytes(r.plan.planned),
    String(r.dispatches),
    r.host_ms === undefined ? '' : r.host_ms.toFixed(2),
  ]);
  return ['', table([ours, 'peak GPU memory, MiB', 'planned, MiB', 'more than planned', 'of that activations and workspace, MiB', 'dispatches', 'host time to submit a run, ms'], cells)];
}

const title = ({ adapter, title: more }) => {
  const what = adapter.description || [adapter.vendor, adapter.architecture, adapter.device].filter(Boolean).join(' ');
  return [what, /(?:Headless)?(Chrome\/[\d.]+)/.exec(adapter.userAgent)?.[1].replace('/', ' ') ?? adapter.userAgent, ...(more ? [more] : [])].join(', ');
};

function report(record, svg) {
  const { times, memory, large } = markdownTables(record);
  const { peak } = record;
  return [
    `# ${title(record)}`,
    '',
    'Engines took turns, round by round, in one page; outputs were compared with float64 references. Made by `npm run bench:peers`; every sample is in the JSON file beside this one.',
    ...(peak ? ['', `Measured peak of the adapter: ${significant(peak.flops_per_second / 1e9)} GFLOP/s f32, ${significant(peak.bytes_per_second / 1e9)} GB/s copied.`] : []),
    '',
    times,
    ...(large ? ['', memory] : []),
    ...ownTable(record),
    ...(svg ? ['', `![roofline](${svg})`] : []),
    '',
  ].join('\n');
}

const colors = { bruit: '#d6246e', 'onnxruntime-web': '#4269d0', tfjs: '#ff8c2b', 'jax-js': '#3ca951', 'webgpu-torch': '#9c6b4e' };

/** Flops per byte against flops per second, both logarithmic, under the measured roof. Rows with known least traffic only. */
export function roofline({ results, peak, ...record }) {
  const [width, height, left, top, right, bottom] = [860, 520, 70, 40, 150, 55];
  const points = Object.values(results).flatMap(({ name, flops, bytes, engines }) =>
    bytes ? Object.entries(engines).filter(([, r]) => usable(r)).map(([engine, r]) => ({ name, engine, x: flops / bytes, y: flops / (r.median_ms / 1e3), ok: r.verdict === 'ok' })) : [],
  );
  if (!points.length || !peak) return undefined;
  const range = (values) => [10 ** Math.floor(Math.log10(Math.min(...values))), 10 ** Math.ceil(Math.log10(Math.max(...values)))];
  const [x0, x1] = range([...points.map((p) => p.x), peak.flops_per_second / peak.bytes_per_second / 2]);
  const [y0, y1] = range([...points.map((p) => p.y), peak.flops_per_second]);
  const px = (x) => left + ((width - left - right) * Math.log10(x / x0)) / Math.log10(x1 / x0);
  const py = (y) => height - bottom - ((height - top - bottom) * Math.log10(y / y0)) / Math.log10(y1 / y0);
  const decades = ([from, to]) => Array.from({ length: Math.round(Math.log10(to / from)) + 1 }, (_, i) => from * 10 ** i);
  const text = (x, y, content, more = '') => `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${content}</text>`;
  const line = (xa, ya, xb, yb, more) => `<line x1="${xa.toFixed(1)}" y1="${ya.toFixed(1)}" x2="${xb.toFixed(1)}" y2="${yb.toFixed(1)}" ${more}/>`;
  const ridge = peak.flops_per_second / peak.bytes_per_second;
  const used = [...new Set(points.map((p) => p.engine))];
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12" fill="#222">`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    text(left, 22, title(record), 'font-size="14" font-weight="bold"'),
    ...decades([x0, x1]).flatMap((x) => [line(px(x), top, px(x), height - bottom, 'stroke="#ddd"'), text(px(x), height - bottom + 18, x, 'text-anchor="middle"')]),
    ...decades([y0, y1]).flatMap((y) => [line(left, py(y), width - right, py(y), 'stroke="#ddd"'), text(left - 8, py(y) + 4, `${y / 1e9}`, 'text-anchor="end"')]),
    text((left + width - right) / 2, height - 14, 'flop per byte of operands and results', 'text-anchor="middle"'),
    text(18, (top + height - bottom) / 2, 'GFLOP/s', `text-anchor="middle" transform="rotate(-90 18 ${(top + height - bottom) / 2})"`),
    line(px(Math.max(x0, y0 / peak.bytes_per_second)), py(Math.max(y0, x0 * peak.bytes_per_second)), px(ridge), py(peak.flops_per_second), 'stroke="#222" stroke-width="1.5"'),
    line(px(ridge), py(peak.flops_per_second), width - right, py(peak.flops_per_second), 'stroke="#222" stroke-width="1.5"'),
    ...points.map(({ name, engine, x, y, ok }) => `<circle cx="${px(x).toFixed(1)}" cy="${py(y).toFixed(1)}" r="5" fill="${ok ? (colors[engine] ?? '#888') : 'none'}" stroke="${colors[engine] ?? '#888'}" fill-opacity="0.8"><title>${engine}, ${name}: ${significant(y / 1e9)} GFLOP/s</title></circle>`),
    ...used.flatMap((engine, i) => [`<circle cx="${width - right + 20}" cy="${top + 10 + 20 * i}" r="5" fill="${colors[engine] ?? '#888'}"/>`, text(width - right + 32, top + 14 + 20 * i, engine)]),
    ...(points.some((p) => !p.ok) ? [text(width - right + 14, top + 24 + 20 * used.length, 'hollow: wrong numbers', 'font-size="11"')] : []),
    '</svg>',
    '',
  ].join('\n');
}

/** The files beside a results file. */
export async function writeReport(file, record) {
  const plot = roofline(record);
  const stem = file.replace(/\.json$/, '');
  if (plot) await writeFile(`${stem}.svg`, plot);
  await writeFile(`${stem}.md`, report(record, plot ? `${basename(stem)}.svg` : undefined));
}

/** A race in a sentence, if bruit and a peer ran any of its rows: worst, best and median share of the fastest peer's speed. */
function summary({ results }) {
  const ratios = Object.values(results)
    .flatMap(({ name, engines }) => (bestPeer(engines) && usable(engines[ours]) ? [{ name, ratio: bestPeer(engines)[1].median_ms / engines[ours].median_ms }] : []))
    .sort((a, b) => a.ratio - b.ratio);
  const show = ({ name, ratio }) => `${ratio.toFixed(2)}x (${name})`;
  return ratios.length ? [`${show(ratios[0])} to ${show(ratios.at(-1))} the fastest peer's speed over ${ratios.length} rows, median ${median(ratios.map(({ ratio }) => ratio)).toFixed(2)}x.`] : [];
}

/** The races in bench/results/, which holds other things, too. */
export async function readRaces() {
  const directory = join(root, 'bench', 'results');
  const files = existsSync(directory) ? (await readdir(directory)).filter((name) => name.endsWith('.json')).sort() : [];
  const records = await Promise.all(files.map(async (name) => ({ file: join(directory, name), record: JSON.parse(await readFile(join(directory, name), 'utf8')) })));
  // The race of the README first, those with options after it.
  return records.filter(({ record }) => record.results).sort((a, b) => Boolean(a.record.title) - Boolean(b.record.title));
}

/** README section, from all committed races. */
export function readmeSection(records) {
  const intro = [
    'Measure it on your machine: `npm run bench` times every kernel at the shapes of real layers and prints GFLOP/s, GB/s and the share of the',
    "adapter's measured peak; `npm run bench -- conv2d --variants` compares the variants of one op; `npm run bruit -- info` measures the peaks.",
    '`npm run bench:peers` races bruit against other WebGPU engines in one headless Chrome, turn by turn, each checked against float64',
    'references. [bench/ROOFLINE.md](bench/ROOFLINE.md) argues each kernel for a real GPU.',
  ].join('\n');
  const sections = records.map(({ file, record }) => {
    const { times, memory, large } = markdownTables(record);
    const link = relative(root, file).replace(/\.json$/, '.md');
    if (record.title) return [`**${title(record)}** ([table](${link}))`, ...summary(record)].join(': ');
    return [`**${title(record)}** ([all numbers](${link}))`, '', times, ...(large ? ['', memory] : [])].join('\n');
  });
  return ['<!-- bench:start -->', intro, ...sections.map((s) => `\n${s}`), '<!-- bench:end -->'].join('\n');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const records = await readRaces();
  for (const { file, record } of records) await writeReport(file, record);
  const readme = join(root, 'README.md');
  const text = await readFile(readme, 'utf8');
  await writeFile(readme, text.replace(/<!-- bench:start -->[^]*<!-- bench:end -->/, () => readmeSection(records)));
}
