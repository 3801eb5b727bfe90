"""Loads a checkpoint that bruit wrote in diffusers and runs it; compares with the images that bruit made of it.

    python scripts/diffusers/load.py FOLDER EXPECTED.safetensors [--lora FILE] [--embeds FILE] [--prompt TEXT | --labels 0 1] --steps N --seed N

Every component must load without a missing or an unexpected weight. EXPECTED is what `bruit sample --rng torch-cpu` wrote for the same arguments.
Exits with 1 where images differ by more than 2e-3.
"""

import argparse
import json
import sys
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from safetensors.torch import load_file


def component(folder, library, name):
    cls = getattr({"diffusers": diffusers, "transformers": transformers}[library], name)
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    # Position ids are a buffer that transformers stopped saving.
    wrong = {k: [n for n in v if not n.endswith("position_ids")] for k, v in info.items() if k != "error_msgs" and v}
    if any(wrong.values()) or info.get("error_msgs"):
        sys.exit(f"{folder}: {info}")
    return model.eval()


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("expected", type=Path)
    options.add_argument("--lora", type=Path)
    options.add_argument("--embeds", type=Path)
    options.add_argument("--prompt")
    options.add_argument("--labels", type=int, nargs="*")
    options.add_argument("--steps", type=int, default=3)
    options.add_argument("--seed", type=int, default=5)
    o = options.parse_args()
    index = json.loads((o.folder / "model_index.json").read_text())
    models = {k: component(o.folder / k, *v) for k, v in index.items() if isinstance(v, list) and v[1] in ("UNet2DModel", "UNet2DConditionModel", "Transformer2DModel", "DiTTransformer2DModel", "AutoencoderKL", "CLIPTextModel")}
    pipe = diffusers.DiffusionPipeline.from_pretrained(o.folder, **models)
    pipe.set_progress_bar_config(disable=True)
    if type(pipe).__name__ != index["_class_name"]:
        sys.exit(f"{o.folder} opened as {type(pipe).__name__}")
    call = {"num_inference_steps": o.steps, "output_type": "np"}
    if o.prompt:
        call["prompt"] = o.prompt
    if o.labels:
        call["class_labels"] = o.labels

    def run():
        with torch.no_grad():
            return np.asarray(pipe(**call, generator=torch.Generator().manual_seed(o.seed)).images).transpose(0, 3, 1, 2)

    if o.lora:
        plain = run()
        pipe.load_lora_weights(o.lora)
        if np.abs(plain - run()).max() < 1e-3:
            sys.exit(f"{o.lora} changes nothing")
    if o.embeds:
        (word, rows), = load_file(o.embeds).items()
        pipe.load_textual_inversion(o.embeds, token=word)
        ids = pipe.tokenizer(pipe.maybe_convert_prompt(word, pipe.tokenizer), add_special_tokens=False).input_ids
        if not torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids].detach().float(), rows):
            sys.exit(f"{o.embeds}: the rows of {word} are not the file's")
    images = run()
    expected = load_file(o.expected)["images"].numpy()
    if images.shape[1] != expected.shape[1]:
        sys.exit(f"{images.shape} and {expected.shape}")
    difference = np.abs(images - expected).max()
    print(f"{o.folder.name}{' + ' + (o.lora or o.embeds).name if o.lora or o.embeds else ''}: {type(pipe).__name__} {images.shape}, max |diffusers {diffusers.__version__} - bruit| {difference:.2e}")
    sys.exit(0 if difference <= 2e-3 else 1)


main()
