import type { Node } from './graph';
import { showShape } from './shape';

/** What decides which kernel of an op is fastest: shapes, storage and attributes. Inner dimensions count as they are. */
export const tuningKey = ({ op, inputs, attrs }: Pick<Node, 'op' | 'inputs' | 'attrs'>): string =>
  `${op.name} ${inputs.map((t) => `${t.dtype}${showShape(t.shape)}`).join(' ')} ${JSON.stringify(attrs)}`;
