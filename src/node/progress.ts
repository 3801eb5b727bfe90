export interface ProgressOptions {
  /** Units of work in all: steps, images. */
  readonly total: number;
  readonly label: string;
  /** Name of the unit in the rate, "step" say; default "it". */
  readonly unit?: string;
  /** Work done before this run (a resumed training): counts for the bar, not for the rate. */
  readonly start?: number;
  /** JSON lines instead of a bar, for scripts. */
  readonly json?: boolean;
  readonly stream?: { write(text: string): unknown; isTTY?: boolean; columns?: number };
  /** Milliseconds; for tests. */
  readonly now?: () => number;
}

/** Least milliseconds between two outputs: a redrawn bar, a JSON line, a line in a log. */
const INTERVAL = { bar: 100, json: 1000, log: 15_000 } as const;

/**
 * Progress on stderr, so that stdout stays for results. In a terminal a bar with rate and time left that redraws itself;
 * in a log one line at the start of work, then at most four a minute, and one at the end; with `json` one line of
 * `{event:"progress",label,done,total,rate,eta_s,...extra}` a second at most. The last update is always shown.
 */
export class Progress {
  readonly #options: Required<ProgressOptions>;
  readonly #mode: keyof typeof INTERVAL;
  readonly #startTime: number;
  #lastOutput = -Infinity;
  #recent: { time: number; done: number }[];
  #finished = false;

  constructor(options: ProgressOptions) {
    this.#options = { unit: 'it', start: 0, json: false, stream: process.stderr, now: () => performance.now(), ...options };
    const { json, stream, now, start } = this.#options;
    this.#mode = json ? 'json' : stream.isTTY ? 'bar' : 'log';
    this.#startTime = now();
    this.#recent = [{ time: this.#startTime, done: start }];
  }

  /** `done` units are finished. `extra` is shown at the end of the line: `{ loss: 0.0312 }`. */
  update(done: number, extra: Readonly<Record<string, number | string>> = {}): void {
    if (this.#finished) return;
    const { total, label, unit, stream, now } = this.#options;
    const time = now();
    const last = done >= total;
    this.#recent.push({ time, done });
    // The rate is of the last ten seconds at least: steady, yet it follows a machine that slows down.
    while (this.#recent.length > 2 && time - this.#recent[1]!.time > 10_000) this.#recent.shift();
    if (!last && time - this.#lastOutput < INTERVAL[this.#mode]) return;
    this.#lastOutput = time;
    const from = this.#recent[0]!;
    const rate = time > from.time ? ((done - from.done) * 1000) / (time - from.time) : 0;
    const eta = rate > 0 ? (total - done) / rate : undefined;
    if (this.#mode === 'json') {
      stream.write(`${JSON.stringify({ event: 'progress', label, done, total, rate: round(rate), eta_s: eta === undefined ? null : round(eta), ...extra })}\n`);
    } else {
      const tail = Object.entries(extra).map(([k, v]) => `  ${k} ${typeof v === 'number' ? formatNumber(v) : v}`).join('');
      const timing = last ? `in ${formatDuration((time - this.#startTime) / 1000)}` : eta === undefined ? '' : `ETA ${formatDuration(eta)}`;
      const counts = `${done}/${total}  ${formatRate(rate, unit)}  ${timing}${tail}`;
      const percent = `${Math.floor((100 * done) / Math.max(total, 1))}%`.padStart(4);
      if (this.#mode === 'log') stream.write(`${label} ${percent}  ${counts}\n`);
      else {
        const room = (stream.columns || 80) - 1; // some pseudo-terminals say 0 columns
        const barWidth = Math.max(0, Math.min(28, room - label.length - counts.length - 10));
        const line = `${label} ${percent} ${barWidth > 4 ? `${bar(done / Math.max(total, 1), barWidth)}  ` : ' '}${counts}`;
        stream.write(`\r\x1b[K${line.slice(0, room)}`);
      }
    }
    if (last) this.finish();
  }

  /** Leaves the bar as it stands and ends its line: before an error message, or when stopped early. */
  finish(): void {
    if (!this.#finished && this.#mode === 'bar' && this.#lastOutput > -Infinity) this.#options.stream.write('\n');
    this.#finished = true;
  }
}

const round = (x: number): number => Number(x.toPrecision(4));

function bar(fraction: number, width: number): string {
  const eighths = Math.round(Math.min(1, fraction) * width * 8);
  const full = '█'.repeat(eighths >> 3) + (eighths & 7 ? ' ▏▎▍▌▋▊▉'[eighths & 7]! : '');
  return `${full}${'░'.repeat(width - full.length)}`;
}

function formatNumber(x: number): string {
  if (!Number.isFinite(x)) return String(x);
  return x !== 0 && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e6) ? x.toExponential(2) : String(Number(x.toPrecision(4)));
}

/** Slow work reads better as seconds for each unit. */
function formatRate(rate: number, unit: string): string {
  return rate === 0 ? `- ${unit}/s` : rate >= 1 ? `${rate.toPrecision(3)} ${unit}/s` : `${(1 / rate).toPrecision(3)} s/${unit}`;
}

/** 7 s, 3:07, 2:03:07, 3d 04:00. */
export function formatDuration(seconds: number): string {
  const s = Math.round(seconds);
  if (s < 60) return `${seconds < 9.95 ? seconds.toFixed(1) : s} s`;
  const two = (n: number): string => String(Math.floor(n)).padStart(2, '0');
  if (s < 3600) return `${Math.floor(s / 60)}:${two(s % 60)}`;
  if (s < 86_400) return `${Math.floor(s / 3600)}:${two((s % 3600) / 60)}:${two(s % 60)}`;
  return `${Math.floor(s / 86_400)}d ${two((s % 86_400) / 3600)}:${two((s % 3600) / 60)}`;
}
