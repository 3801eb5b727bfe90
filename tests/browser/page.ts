/** Entry in the browser: run.mjs loads it and exposes `reportTestResult`. */
import { runBrowserTests, type TestResult } from './suite';

declare global {
  interface Window {
    reportTestResult: (result: TestResult) => Promise<void>;
    runSuite: (filter: string) => Promise<void>;
  }
}

window.runSuite = (filter) =>
  runBrowserTests(
    {
      report: (result) => window.reportTestResult(result),
      golden: async (path) => {
        const response = await fetch(`/goldens/${path}`);
        if (!response.ok) throw new Error(`golden ${path}: HTTP ${response.status}`);
        return response.arrayBuffer();
      },
    },
    filter,
  );
