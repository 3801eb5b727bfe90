/**
 * Which Vulkan driver Dawn sees. The loader reads its environment when the process starts, so choosing an adapter means
 * starting the process with the right variables: {@link adapterEnvironment} computes them, {@link runWithAdapter} uses them.
 */
import { execFile, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import { BruitError } from '../engine/errors';
import { packageDirectory } from './cache';
import { swiftshader } from './swiftshader';

/** What can be asked for: `auto` takes a hardware GPU if there is one, else `software`. */
export const adapterKinds = ['auto', 'gpu', 'software', 'swiftshader', 'lavapipe'] as const;
export type AdapterKind = (typeof adapterKinds)[number];

/** Variable that tells a started process which kind it was given: `gpu`, `swiftshader` or `lavapipe`. */
export const adapterVariable = 'BRUIT_ADAPTER_ACTIVE';

type Environment = Record<string, string>;

/** Checks a name given by a person. Throws `BruitError('input')` listing the kinds. */
export function parseAdapterKind(name: string): AdapterKind {
  const kind = adapterKinds.find((candidate) => candidate === name);
  if (!kind) throw new BruitError('input', `unknown adapter "${name}": choose one of ${adapterKinds.join(', ')}`);
  return kind;
}

const libraryDirectories = ['/usr/lib/x86_64-linux-gnu', '/usr/lib/aarch64-linux-gnu', '/lib/x86_64-linux-gnu', '/usr/lib64', '/lib64', '/usr/lib', '/usr/local/lib'];
const icdDirectories = ['/usr/share/vulkan/icd.d', '/usr/local/share/vulkan/icd.d', '/etc/vulkan/icd.d'];

function prependLibraryPath(directory: string): string {
  const current = process.env['LD_LIBRARY_PATH'];
  return current ? `${directory}${delimiter}${current}` : directory;
}

/** LD_LIBRARY_PATH with the package's Vulkan loader where the system has none (containers often have only a driver). */
async function loaderEnvironment(): Promise<Environment> {
  const searched = [...(process.env['LD_LIBRARY_PATH'] ?? '').split(delimiter).filter(Boolean), ...libraryDirectories];
  if (searched.some((directory) => existsSync(join(directory, 'libvulkan.so.1')))) return {};
  return { LD_LIBRARY_PATH: prependLibraryPath((await swiftshader()).directory) };
}

/** A loader or driver without XDG_RUNTIME_DIR warns on stderr at every start. */
function runtimeDirectory(): Environment {
  if (process.env['XDG_RUNTIME_DIR']) return {};
  const directory = join(tmpdir(), `bruit-runtime-${process.getuid?.() ?? 'user'}`);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  return { XDG_RUNTIME_DIR: directory };
}

/** Restricts the loader to one driver. VK_DRIVER_FILES is VK_ICD_FILENAMES' successor and would win if the caller set it. */
function onlyDriver(icd: string): Environment {
  return { VK_ICD_FILENAMES: icd, VK_DRIVER_FILES: icd };
}

/** Manifest of Mesa's lavapipe installed on the system, if any. */
export function lavapipeManifest(): string | undefined {
  for (const directory of icdDirectories) {
    if (!existsSync(directory)) continue;
    const name = readdirSync(directory).find((file) => /^lvp_icd.*\.json$/.test(file));
    if (name) return join(directory, name);
  }
  return undefined;
}

/** Whether the system shows a GPU to a process at all; cheap, so that machines without one skip the probe. */
function hasGpuNode(): boolean {
  if (['/dev/nvidiactl', '/dev/dxg', '/dev/kfd'].some((path) => existsSync(path))) return true;
  return existsSync('/dev/dri') && readdirSync('/dev/dri').some((name) => name.startsWith('render'));
}

/** Asks Dawn, in a process of its own under `environment`, whether it finds an adapter that is not a CPU. */
async function probeHardware(environment: Environment): Promise<boolean> {
  const webgpu = pathToFileURL(join(packageDirectory('webgpu'), 'index.js')).href;
  const program = `
    const { create } = await import(${JSON.stringify(webgpu)});
    const adapter = await create([]).requestAdapter({ powerPreference: 'high-performance' });
    process.stdout.write(adapter && !adapter.info.isFallbackAdapter ? 'hardware' : 'none');`;
  try {
    const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', program], {
      env: { ...process.env, ...environment },
      timeout: 30_000,
    });
    return stdout === 'hardware';
  } catch {
    return false; // a driver that crashes or hangs while being probed is no adapter
  }
}

/**
 * Environment variables under which a new process sees the adapter `kind`; merge them over `process.env`.
 * Outside Linux the operating system's own adapters are used and nothing needs to be set.
 * `BRUIT_SOFTWARE=lavapipe` makes `auto` and `software` use the system's lavapipe instead of SwiftShader.
 * Throws `BruitError('device')` if an adapter that was asked for by name is not there.
 */
export async function adapterEnvironment(kind: AdapterKind): Promise<Environment> {
  switch (kind) {
    case 'auto':
    case 'gpu': {
      if (process.platform !== 'linux') return { [adapterVariable]: 'gpu' };
      const environment = { ...(await loaderEnvironment()), ...runtimeDirectory(), [adapterVariable]: 'gpu' };
      if (hasGpuNode() && (await probeHardware(environment))) return environment;
      if (kind === 'auto') return adapterEnvironment('software');
      throw new BruitError(
        'device',
        'no hardware GPU answers through Vulkan: install its Vulkan driver (check with vulkaninfo --summary), or use --adapter software',
      );
    }
    case 'software':
      return adapterEnvironment(process.env['BRUIT_SOFTWARE'] === 'lavapipe' ? 'lavapipe' : 'swiftshader');
    case 'swiftshader': {
      const { directory, icd } = await swiftshader();
      return {
        ...runtimeDirectory(),
        ...onlyDriver(icd),
        LD_LIBRARY_PATH: prependLibraryPath(directory),
        [adapterVariable]: 'swiftshader',
      };
    }
    case 'lavapipe': {
      const icd = process.platform === 'linux' ? lavapipeManifest() : undefined;
      if (!icd) throw new BruitError('device', 'lavapipe is not installed: install mesa-vulkan-drivers, or use --adapter swiftshader');
      return { ...(await loaderEnvironment()), ...runtimeDirectory(), ...onlyDriver(icd), [adapterVariable]: 'lavapipe' };
    }
  }
}

/** Spawns with the adapter's environment, stdio inherited and signals forwarded; resolves with a shell's exit status. */
async function spawnWithAdapter(kind: AdapterKind, command: string, args: readonly string[], channel: boolean): Promise<number> {
  const environment = await adapterEnvironment(kind);
  const child = spawn(command, args, {
    stdio: ['inherit', 'inherit', 'inherit', ...(channel ? (['ipc'] as const) : [])],
    env: { ...process.env, ...environment },
  });
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  // A terminal sends Ctrl-C to the whole foreground group, so the child has it already; only keep the parent waiting.
  const forward = (signal: NodeJS.Signals): void => {
    if (signal !== 'SIGINT' || !process.stdin.isTTY) child.kill(signal);
  };
  for (const signal of signals) process.on(signal, forward);
  try {
    return await new Promise<number>((resolve, reject) => {
      child.once('error', (cause) => reject(new BruitError('io', `cannot start ${command}: ${cause.message}`, { cause })));
      child.once('exit', (code, signal) => resolve(code ?? 128 + constants.signals[signal ?? 'SIGTERM']));
    });
  } finally {
    for (const signal of signals) process.off(signal, forward);
  }
}

/** Runs any command with the adapter `kind`. Resolves with its exit status (128 + number if a signal ended it). */
export function runWithAdapter(kind: AdapterKind, command: string, args: readonly string[]): Promise<number> {
  return spawnWithAdapter(kind, command, args, false);
}

// SIGKILL cannot be forwarded. A channel between the processes closes when the parent dies by any cause, and the child,
// told by this preloaded line, ends too: otherwise a killed training run would go on and overwrite checkpoints.
const endWithParent = `data:text/javascript,${encodeURIComponent(
  "process.on('disconnect', () => process.kill(process.pid, 'SIGTERM')); process.channel.unref();",
)}`;

/** Starts this Node with `script` and `args` under the adapter `kind`; resolves with its exit status. */
export function reexecWithAdapter(kind: AdapterKind, script: string, args: readonly string[]): Promise<number> {
  return spawnWithAdapter(kind, process.execPath, [...process.execArgv, '--import', endWithParent, script, ...args], true);
}
