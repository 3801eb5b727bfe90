/**
 * How fast a device works through what programs submit, found out as they run, so that no submission takes long: drivers and browsers end a
 * device whose GPU does not answer (Windows after 2 s, Chrome after about 10 s), and a page's own frames wait behind whatever is submitted.
 */
import type { Cost } from './op';

/** Arithmetic and memory traffic in one number: on most GPUs a byte takes as long as several flops. */
export const workOf = ({ flops, bytes }: Cost): number => flops + 4 * bytes;

export class Pace {
  /**
   * Milliseconds that a submission should take at most, by the rate known so far: a tenth of what the strictest watchdog allows a GPU. Software
   * adapters, where only a browser's watchdog counts, may take a second: a step of theirs takes seconds, and each submission some of the host's time.
   */
  bound: number;
  /**
   * Work a millisecond. It begins at what slow adapters do, 0.2 TFLOP/s, or 4 GFLOP/s in software, and follows what is measured, within a factor of 4 at a
   * time: a host that was busy when the GPU was done, or a driver that compiles as it runs, measures too slow.
   */
  rate: number;
  private submittedWork = 0;
  /** Of that, what is known to be done, and since when the GPU works on the rest. */
  private doneWork = 0;
  private since = 0;

  private readonly assumed: number;

  constructor(
    private readonly queue: GPUQueue,
    software: boolean,
  ) {
    this.rate = this.assumed = software ? 4e6 : 2e8;
    this.bound = software ? 1000 : 200;
  }

  /** Whether a dispatch of this work may need to be cut, now or when the adapter turns out to be slower than it seems. */
  mayBeLong(work: number): boolean {
    return work > (Math.min(this.rate, this.assumed) * this.bound) / 4;
  }

  /** Work of one submission. */
  get budget(): number {
    return this.rate * this.bound;
  }

  /** To be told after each submission. */
  submitted(work: number): void {
    const idle = this.doneWork === this.submittedWork;
    this.submittedWork += work;
    if (idle) {
      this.since = performance.now();
      this.follow();
    }
  }

  /** One question is under way until the queue is empty. Nothing waits for it. */
  private follow(): void {
    const { submittedWork } = this;
    this.queue.onSubmittedWorkDone().then(
      () => {
        const now = performance.now();
        const milliseconds = now - this.since;
        // What takes no time measures how late promises come.
        if (milliseconds > 20) this.rate *= Math.min(Math.max((submittedWork - this.doneWork) / milliseconds / this.rate, 1 / 4), 4);
        this.since = now;
        this.doneWork = submittedWork;
        if (submittedWork < this.submittedWork) this.follow();
      },
      // The device was lost: whoever waits for the work is told.
      () => undefined,
    );
  }
}
