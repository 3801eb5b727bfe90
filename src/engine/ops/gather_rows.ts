import type { Tensor } from '../graph';
import { embedding } from './embedding';

/** Rows of `table` [R,D] by `index` u32 [N]: [N,D]. Coefficients of a schedule by timestep; an index beyond the table reads its last row. */
export const gatherRows = (table: Tensor, index: Tensor): Tensor => embedding(table, index);
