/** What `vitest --mode MODE` asks for beside the usual tests. */
const { MODE } = (import.meta as unknown as { env: { MODE: string } }).env;

/** The full counts of tests that repeat something at random (`npm run test:long`); a few repetitions otherwise. */
export const long = MODE === 'long';
