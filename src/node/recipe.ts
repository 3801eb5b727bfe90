/** A recipe on disk, with the folders that it names: configs are read here, weights when training begins. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { BruitError } from '../engine/errors';
import { readJson, type ModelFolder } from '../io/folder';
import { isJsonObject } from '../io/json';
import type { ComponentName } from '../train/components';
import { componentEntries, modelFolders, parseTrainConfig, type PretrainedComponents, type TrainConfig } from '../train/config';
import { directory } from './directory';
import { fileError } from './files';

export interface Recipe {
  /** The file as it is. */
  readonly text: string;
  readonly config: TrainConfig;
  /** Folders of weights to begin with. */
  readonly weights: Partial<Record<ComponentName, ModelFolder>>;
  readonly tokenizer: ModelFolder | undefined;
}

/**
 * Reads a recipe. `model`, `text_encoder` and `vae` may be folders with a config.json and weights, `tokenizer` is one, `pipeline` is a folder in diffusers'
 * layout that has whatever of these is not given, and `train.init_from` has weights for what is trained: the folder of a model, or of a pipeline or
 * checkpoint. Paths are relative to the working directory.
 */
export async function loadRecipe(file: string): Promise<Recipe> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (e) {
    throw fileError('read the recipe', file, e);
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (e) {
    throw new BruitError('config', `${file} is not JSON: ${(e as Error).message}`, { cause: e });
  }
  if (!isJsonObject(json)) return { text, config: parseTrainConfig(json, file), weights: {}, tokenizer: undefined };
  const { pipeline, ...recipe } = json;
  if (pipeline !== undefined) await fillFromPipeline(recipe, pipeline, file);
  const folders: Partial<Record<(typeof componentEntries)[number] | 'tokenizer', ModelFolder>> = {};
  for (const entry of [...componentEntries, 'tokenizer'] as const) {
    const value = recipe[entry];
    if (typeof value !== 'string') {
      if (entry === 'tokenizer' && value !== undefined) throw new BruitError('config', `${file}: "tokenizer" must be a folder`);
      continue;
    }
    const folder = directory(path.resolve(value));
    folders[entry] = folder;
    if (entry === 'tokenizer') continue;
    if (!(await folder.has('config.json'))) throw new BruitError('config', `${file}: "${entry}" names the folder ${value}, which has no config.json`);
    recipe[entry] = await readJson(folder, 'config.json');
  }
  const initFrom = isJsonObject(recipe.train) ? recipe.train.init_from : undefined;
  if (typeof recipe.scheduler === 'string') recipe.scheduler = await readJson(directory(path.resolve(recipe.scheduler)), 'scheduler_config.json');
  const pretrained: PretrainedComponents = { model: folders.model !== undefined || typeof initFrom === 'string', text_encoder: folders.text_encoder !== undefined, vae: folders.vae !== undefined };
  const config = parseTrainConfig(recipe, file, pretrained);
  const own = modelFolders[config.model.kind];
  const weights: Recipe['weights'] = {
    ...(folders.text_encoder && { text_encoder: folders.text_encoder }),
    ...(folders.vae && { vae: folders.vae }),
    ...(folders.model && { [own]: folders.model }),
  };
  if (typeof initFrom === 'string') {
    const folder = directory(path.resolve(initFrom));
    const part = (name: string): ModelFolder => directory(path.resolve(initFrom, name));
    if (await folder.has('config.json')) weights[own] = folder;
    else if (await folder.has(`${own}/config.json`)) {
      weights[own] = part(own);
      if (config.trainTextEncoder && (await folder.has('text_encoder/config.json'))) weights.text_encoder = part('text_encoder');
    } else throw new BruitError('config', `${file}: train: init_from names ${initFrom}, which has neither config.json nor ${own}/config.json`);
  }
  return { text, config, weights, tokenizer: folders.tokenizer };
}

async function fillFromPipeline(recipe: Record<string, unknown>, pipeline: unknown, file: string): Promise<void> {
  if (typeof pipeline !== 'string') throw new BruitError('config', `${file}: "pipeline" must be a folder`);
  const folder = directory(path.resolve(pipeline));
  const parts: readonly (readonly [string, string])[] = [['model', 'unet'], ['model', 'transformer'], ['text_encoder', 'text_encoder'], ['vae', 'vae']];
  for (const [entry, part] of parts) if (recipe[entry] === undefined && (await folder.has(`${part}/config.json`))) recipe[entry] = path.join(pipeline, part);
  if (recipe.model === undefined) throw new BruitError('config', `${file}: "pipeline" names ${pipeline}, which has neither unet/config.json nor transformer/config.json`);
  if (recipe.tokenizer === undefined && recipe.text_encoder !== undefined) recipe.tokenizer = path.join(pipeline, 'tokenizer');
  if (recipe.scheduler === undefined && (await folder.has('scheduler/scheduler_config.json'))) recipe.scheduler = path.join(pipeline, 'scheduler');
}
