/** The engine's half of the page: everything that computes runs in this worker, so the page never waits for it. */
import { expose } from 'comlink';
import { Engine, requestDevice } from '../../src/engine/device';
import { loadTuning } from '../../src/io/tuning_store';
import { findAdapter, openDevice } from './adapter';
import { InsideTab } from './inside';
import { SampleTab, type ModelInfo } from './sample';
import { TourTab } from './tour';
import { TrainTab } from './train';
import { Views } from './view';

export interface AdapterInfo {
  readonly name: string;
  readonly kind: 'gpu' | 'software';
  readonly f16: boolean;
  readonly timestamps: boolean;
  readonly bindingLimit: number;
}

export class EngineWorker {
  sample!: SampleTab;
  train!: TrainTab;
  inside!: InsideTab;
  tour!: TourTab;
  private engine!: Engine;
  private views!: Views;

  /** Finds an adapter. Everything else waits for it. `onLost` is told when its device is lost: nothing here works from then on. */
  async start(onLost: (reason: string) => void): Promise<AdapterInfo> {
    const adapter = await findAdapter();
    this.engine = await Engine.create({ device: await openDevice(requestDevice(adapter)) });
    void this.engine.device.lost.then(({ reason, message }) => onLost(message || reason));
    await loadTuning(this.engine);
    this.views = new Views(this.engine);
    this.sample = new SampleTab(this.engine, this.views);
    this.train = new TrainTab(this.engine, this.views);
    this.inside = new InsideTab(this.engine, this.views, () => this.sample.pipeline);
    this.tour = new TourTab(this.engine, this.views);
    const { name, kind, f16, timestamps, limits } = this.engine.profile;
    return { name, kind, f16, timestamps, bindingLimit: limits.maxStorageBufferBindingSize };
  }

  /** Answers, unless this worker hangs. */
  ping(): void {}

  attach(name: string, canvas: OffscreenCanvas): void {
    this.views.attach(name, canvas);
  }

  detach(name: string): void {
    this.views.detach(name);
  }

  /** Loads the weights that the Train tab has made into the Sample tab. */
  async sampleTrained(): Promise<ModelInfo> {
    return this.sample.load(await this.train.model(), () => undefined);
  }

  /** Bytes of GPU memory that are held now. */
  liveBytes(): number {
    return this.engine.liveBytes;
  }
}

expose(new EngineWorker());
