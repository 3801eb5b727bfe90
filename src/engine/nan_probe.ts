/** Finding the layer that makes the first NaN or infinity, on the GPU while a program runs. */
import shader from '../../shaders/check_finite.wgsl';
import { BruitError } from './errors';
import type { Tensor } from './graph';
import type { Bindable, TempTensor } from './op';
import { readsOf, type PlannedNode } from './passes';
import type { Lowered } from './planned_graph';
import type { Program } from './program';
import { numel, showShape } from './shape';

/** The first value of a run that is not finite. */
export interface NonFinite {
  readonly op: string;
  /** Layer, as in the checkpoint. */
  readonly path: string;
  readonly shape: readonly number[];
}

/** Enough invocations to keep a GPU busy. */
const maxWorkgroups = 1024;

/**
 * Given to `compile` as `probe`, it looks at everything that the program computes, right where it is computed: each float result is read once more. Nothing comes back but one number, when {@link firstNonFinite} asks for it. One probe is for one program.
 */
export class NanProbe {
  private readonly found: TempTensor = { temp: true, label: 'nan_probe', shape: [1], dtype: 'u32' };
  private nodes: PlannedNode[] = [];

  /** Called by `compile` with the dispatches of its program. */
  attach(lowered: readonly Lowered[]): void {
    this.nodes = lowered.map(({ node }) => node);
    lowered.forEach(({ node, specs, temps }, i) => {
      // A state that no other node reads is a record (metrics), where an old value may stand.
      const mutated = (node.op.mutates ?? []).map((k) => node.inputs[k]!).filter((t) => this.nodes.some((other) => other !== node && readsOf(other).includes(t)));
      const written: Bindable[] = [...node.outputs, ...mutated];
      for (const x of written) {
        if (x.dtype !== 'f32' && x.dtype !== 'f16') continue;
        const count = numel(x.shape);
        const workgroups = Math.min(Math.ceil(count / 64), maxWorkgroups);
        specs.push({
          shader: { file: 'check_finite.wgsl', text: shader },
          entry: 'forward',
          prologue: { X: x.dtype },
          bindings: { x, found: this.found },
          // Of several, the largest mark stays: that of the first node.
          params: { count, mark: 0xffffffff - i, stride: workgroups * 64 },
          workgroups,
          cost: { flops: 0, bytes: (x as Tensor).bytes },
        });
      }
      // Alive from the first node to the last.
      if (i === 0 || i === lowered.length - 1) temps.push(this.found);
    });
  }

  /** The first node that made a NaN or an infinity since this was last asked, or undefined. Reads four bytes back. */
  async firstNonFinite(program: Program): Promise<NonFinite | undefined> {
    const view = program.view(this.found);
    const [mark] = new Uint32Array(await program.engine.readBuffer(view, 4));
    if (!mark) return undefined;
    program.engine.device.queue.writeBuffer(view.buffer, view.offset, Uint32Array.of(0));
    const { op, path, outputs, inputs } = this.nodes[0xffffffff - mark]!;
    return { op: op.name, path, shape: (outputs[0] ?? inputs[0]!).shape };
  }

  /** @throws BruitError `nan` naming the layer, if a run since the last question made a NaN or an infinity. */
  async assertFinite(program: Program, when: string): Promise<void> {
    const bad = await this.firstNonFinite(program);
    if (bad) throw new BruitError('nan', `${when}: ${describeNonFinite(bad)}`);
  }
}

export const describeNonFinite = ({ op, path, shape }: NonFinite): string => `${op}${path && ` (${path})`} ${showShape(shape)} is the first to hold a NaN or an infinity`;
