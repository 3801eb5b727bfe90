/** Picks what to recompute from a case's own JSON. */
import type { Engine } from '../engine/device';
import { BruitError } from '../engine/errors';
import { isFrechetCases, verifyFrechet } from './frechet';
import { isGradientCase, verifyGradients } from './gradients';
import { isHybridLossCase, verifyHybridLoss } from './hybrid_loss';
import { isLearningRatesCase, verifyLearningRates } from './learning_rates';
import { hasForwardRecord, IO, verifyForward, weightFiles } from './model';
import { modelClassOf } from './models';
import { RUNS, verifyPipeline } from './pipeline';
import { pipelineClasses } from './pipelines';
import { CaseReport, type CaseFolder } from './report';
import { isSchedulersCase, verifySchedulers } from './schedulers';
import { tokenizedTexts, verifyTokenizers } from './tokenizers';
import { isTorchRandomRecord, verifyTorchRandom } from './torch_random';
import { isTrainingCase, verifyTraining } from './training';

/**
 * Recomputes a reference case on the engine's adapter and compares it with its records.
 * @throws BruitError `input` for a folder that is no case, or a case of a kind that is not supported; `config`, `safetensors`, … for broken files.
 */
export async function verifyCase(engine: Engine, folder: CaseFolder): Promise<CaseReport> {
  const report = new CaseReport();
  const has = (file: string) => folder.files.includes(file);
  const json = async (file: string): Promise<unknown> => (has(file) ? folder.json(file) : undefined);

  if (has(RUNS)) await verifyPipeline(report, engine, folder, pipelineClasses);
  else if (has('config.json')) await verifyModel(report, engine, folder, json);
  else if (has('cases.json')) {
    const cases = await json('cases.json');
    if (!isSchedulersCase(cases)) throw unknownKind(folder, 'cases.json holds no entry with "class" and "config"');
    await verifySchedulers(report, engine, folder, cases);
  } else if (has('case.json')) {
    const description = await json('case.json');
    if (isHybridLossCase(description)) await verifyHybridLoss(report, engine, folder, description);
    else if (isLearningRatesCase(description)) verifyLearningRates(report, description, 'case.json');
    else if (isFrechetCases(description)) verifyFrechet(report, description, 'case.json');
    else if (tokenizedTexts(description).size) await verifyTokenizers(report, folder, tokenizedTexts(description), 'case.json');
    else if (has(IO) && isTorchRandomRecord(await folder.tensors(IO))) await verifyTorchRandom(report, await folder.tensors(IO), IO);
    else throw unknownKind(folder, 'case.json describes no hybrid losses, learning rates, Fréchet distances, tokenizers or random draws');
  } else throw unknownKind(folder, folder.files.length ? 'it has no config.json, case.json, cases.json or runs/runs.json' : 'it is empty');

  if (report.comparisons.length === 0) throw new BruitError('input', `${folder.name}: nothing in this case could be recomputed: its files hold no record that belongs to ${report.kinds.join(', ') || 'its config'}`);
  return report;
}

async function verifyModel(report: CaseReport, engine: Engine, folder: CaseFolder, json: (file: string) => Promise<unknown>): Promise<void> {
  const config = await json('config.json');
  const model = modelClassOf(config, folder.name);
  const opened = model.open(config, `${folder.name}/config.json`);
  const [own, train] = [await json('case.json'), await json('train.json')];
  if (folder.files.includes(IO) && hasForwardRecord(model, await folder.tensors(IO))) await verifyForward(report, engine, folder, model, opened);
  const weights = () => folder.tensors(weightFiles(folder, model).values().next().value!);
  if (opened.training && isTrainingCase(train)) await verifyTraining(report, engine, folder, { ...opened.training, weights }, train, { jsonFile: 'train.json', file: 'train.safetensors' });
  if (opened.training && isTrainingCase(own)) await verifyTraining(report, engine, folder, { ...opened.training, weights }, own, { jsonFile: 'case.json', file: IO });
  if (opened.denoise && isGradientCase(own) && (await folder.tensors(IO)).tensors.has('x0')) await verifyGradients(report, engine, folder, model, opened.denoise, own);
  if (report.kinds.length === 0) throw unknownKind(folder, `a ${model.names[0]}, but with neither ${IO} of a forward pass (${model.inputs.map((name) => `"${name}"`).join(' or ')}) nor a training record`);
}

const unknownKind = (folder: CaseFolder, why: string): BruitError => new BruitError('input', `${folder.name} is not a reference case that bruit knows: ${why}`);
