import type { Browser } from 'puppeteer-core';

export declare function launchChrome(options?: { adapter?: 'software' | 'gpu' | 'none'; canvas?: boolean; hosts?: readonly string[] }): Promise<Browser>;
export declare function serve(mounts: Readonly<Record<string, string>>, options?: { port?: number; host?: string; hosts?: readonly string[]; headers?: Readonly<Record<string, string>> }): Promise<{ url: string; close: () => Promise<void> }>;
