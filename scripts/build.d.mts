export declare const root: string;
export declare const samplingLimit: number;
export declare function gzippedSize(path: string): number;
export declare function build(names?: readonly string[]): Promise<string[]>;
export declare function ensureBuilt(name: string): Promise<string>;
export declare function bundle(entry: string, out: string, platform: 'node' | 'browser', options?: object): Promise<string>;
