/** Going on after the loss of a device: a driver that was reset or updated, a GPU that was unplugged, memory that ran out. */
import { Engine, type EngineOptions } from './device';
import { BruitError } from './errors';

export interface WithEngineOptions extends Omit<EngineOptions, 'device'> {
  /**
   * After the loss of the device, `work` runs again on a new one. Noise and initial weights are functions of the seed, so a run gives the same images or
   * losses as one that nothing befell, bit for bit on the same adapter.
   */
  readonly recover?: boolean;
  /** Devices in all; 3 by default. */
  readonly attempts?: number;
  /** Called with the error of each loss, before the work begins anew. */
  readonly onLost?: (error: BruitError, attempt: number) => void;
  /** Makes the engine; {@link Engine.create} with the other options by default. */
  readonly create?: () => Promise<Engine>;
}

/**
 * Runs `work` with an engine, which lives as long as the work. `attempt` counts from 0: what an earlier attempt left on disk can be taken up.
 * @throws BruitError `device` where the device was lost, unless `recover` is set (or the attempts are used up); whatever `work` throws.
 */
export async function withEngine<T>(options: WithEngineOptions, work: (engine: Engine, attempt: number) => Promise<T>): Promise<T> {
  const { recover = false, attempts = 3, onLost, create = () => Engine.create(options) } = options;
  for (let attempt = 0; ; attempt++) {
    const engine = await create();
    try {
      return await work(engine, attempt);
    } catch (error) {
      if (!engine.isLost || !(error instanceof BruitError) || !recover || attempt + 1 >= attempts) throw error;
      onLost?.(error, attempt);
    } finally {
      engine.destroy();
    }
  }
}
