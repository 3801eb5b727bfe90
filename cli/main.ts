/** The command line: parsing, help, and how errors leave. Each command is a file of its own. */
import { Command, CommanderError, Option } from 'commander';
import { description, version } from '../package.json';
import { BruitError } from '../src/engine/errors';
import { adapterKinds } from '../src/node/adapter';
import { addBench } from './bench';
import { addDemo } from './demo';
import { addExport } from './export';
import { addInfo } from './info';
import { addInspect } from './inspect';
import { addSample } from './sample';
import { addTrain } from './train';
import { addTune } from './tune';
import { addVerify } from './verify';

/** Errors of the machine or of the run, and not of what was asked for. */
const failures = new Set(['device', 'limit', 'shader', 'aborted', 'nan']);

/** Errors that list several things do so in lines; here they become clauses. */
const oneLine = (message: string): string => `bruit: ${message.trim().replace(/^error: /, '').replace(/([.,:;]?)\s*\n\s*/g, (_, end: string) => `${end || ';'} `)}\n`;

const program = new Command('bruit')
  .description(description)
  .version(version, '-V, --version')
  // bin/bruit.mjs reads it before this process starts, since drivers are chosen by the environment; here it is for the help.
  .addOption(new Option('--adapter <kind>', 'WebGPU adapter').choices(adapterKinds).default('auto').env('BRUIT_ADAPTER'))
  .exitOverride()
  .configureHelp({ showGlobalOptions: true })
  .configureOutput({ outputError: (text, write) => write(oneLine(text)) })
  .helpCommand('help [command]', 'how to use a command')
  .addHelpText('after', '\nExit codes: 0 done, 1 failed (or verify found a miss), 2 wrong usage or bad input.\n`bruit help COMMAND` shows options and examples of a command.');

for (const add of [addSample, addTrain, addVerify, addExport, addBench, addTune, addInspect, addInfo, addDemo]) add(program);

// `bruit inspect … | head` closes the pipe early: that is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    // Help and version were asked for; anything else that the parser says is wrong usage, and it has said it.
    process.exitCode = error.exitCode === 0 ? 0 : 2;
  } else if (error instanceof BruitError) {
    process.stderr.write(oneLine(error.message));
    process.exitCode = failures.has(error.code) ? 1 : 2;
  } else {
    process.stderr.write(`bruit: internal error, please report it: ${error instanceof Error ? error.stack : String(error)}\n`);
    process.exitCode = 1;
  }
}
