/// <reference types="vite/client" />
/** `tests` of every file in src/engine/ops: a new op is picked up by being there. */
import type { OpTests } from '../../src/engine/op';

const modules = import.meta.glob<{ tests?: OpTests<never> | OpTests<never>[] }>('../../src/engine/ops/*.ts', { eager: true });

export const allOps: readonly OpTests<never>[] = Object.values(modules).flatMap((m) => m.tests ?? []);
