"""GPU memory that diffusers needs for the pipelines of tests/configs, without a GPU and without weights.

Models are built from their configs on PyTorch's meta device and run once with one image (two rows where it is guided); a dispatch mode adds up the bytes of
all tensors that are alive after each operator. That is what PyTorch's allocator must hold at least: no workspaces of cuDNN, no fragmentation. Attention is
fused, as on a GPU. Safety checkers are left out. Columns, in GiB: weights of all components and the largest activations on
top (`pipe.to("cuda")`); the largest component with its activations (`enable_model_cpu_offload()`).

    python scripts/diffusers/memory.py [--dtype float16]
"""

import argparse
import json
import weakref
from pathlib import Path

import diffusers
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
import transformers

try:
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
except ImportError:
    from diffusers.pipelines.unclip.text_proj import UnCLIPTextProjModel

CONFIGS = Path(__file__).parents[2] / "tests" / "configs"
UNETS = {"sd15": ("sd15_unet", 64), "sd21": ("sd21_unet", 96), "sdxl": ("sdxl_unet", 128)}
TOKENS = 77


class Alive(TorchDispatchMode):
    """Bytes of the storages that operators have made and that somebody still holds."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_flatten(out)[0]:
            if not isinstance(t, torch.Tensor):
                continue
            storage = t.untyped_storage()
            key = storage._cdata
            if key in self.known or key in given:
                continue
            self.known.add(key)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.free, key, size)
        return out

    def free(self, key, size):
        self.known.discard(key)
        self.now -= size


def fused_attention(query, key, value, **_):
    """What the fused kernels of a GPU allocate: the result. The meta device would make the whole matrix of weights."""
    return query.new_empty(*query.shape[:-1], value.shape[-1])


torch.nn.functional.scaled_dot_product_attention = fused_attention


def build(kind, config):
    if kind.startswith(("CLIP", "T5")):
        made = transformers.T5Config if kind.startswith("T5") else transformers.CLIPTextConfig
        return getattr(transformers, kind)(made(**config))
    cls = UnCLIPTextProjModel if kind == "UnCLIPTextProjModel" else getattr(diffusers, kind)
    return cls.from_config(config)


def run(kind, model, side, dtype):
    def zeros(*shape):
        return torch.zeros(shape, dtype=dtype, device="meta")

    t = torch.zeros(2, dtype=torch.long, device="meta")
    if kind.startswith(("CLIP", "T5")):
        return model(torch.zeros(2, TOKENS, dtype=torch.long, device="meta"))
    c = model.config
    if kind == "AutoencoderKL":
        return model.decode(zeros(1, 4, side, side))
    if kind == "UNet2DModel":
        return model(zeros(1, c.in_channels, side, side), t[:1])
    if kind == "PriorTransformer":
        return model(zeros(2, c.embedding_dim), t, zeros(2, c.embedding_dim), zeros(2, TOKENS, c.embedding_dim), zeros(2, TOKENS).bool())
    if kind == "UnCLIPTextProjModel":
        return None
    more = {}
    if c.addition_embed_type == "text_time":
        more["added_cond_kwargs"] = {"text_embeds": zeros(2, 1280), "time_ids": zeros(2, 6)}
    if c.class_embed_type == "identity":
        more["class_labels"] = zeros(2, 1280)
    width = c.encoder_hid_dim or c.cross_attention_dim
    return model(zeros(2, c.in_channels, side, side), t, zeros(2, TOKENS, width), **more)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--dtype", default="float32")
    dtype = getattr(torch, options.parse_args().dtype)
    print(f"diffusers {diffusers.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, {dtype}")
    for pipeline, files in json.loads((CONFIGS / "pipelines.json").read_text()).items():
        files = dict(files)
        own = UNETS.get(pipeline)
        if own:
            files["unet/config.json"] = json.loads((CONFIGS / f"{own[0]}.json").read_text())
        parts = {}
        for name, entry in files["model_index.json"].items():
            if not isinstance(entry, list) or f"{name}/config.json" not in files:
                continue
            config = files[f"{name}/config.json"]
            with torch.device("meta"), torch.no_grad():
                model = build(entry[1], config).to(dtype).eval()
                weights = sum(p.numel() * p.element_size() for p in model.parameters())
                with Alive() as alive:
                    out = run(entry[1], model, own[1] if own else config.get("sample_size"), dtype)
                    del out
            parts[name] = weights, alive.peak
        together = sum(w for w, _ in parts.values()) + max(a for _, a in parts.values())
        largest = max(parts, key=lambda n: sum(parts[n]))
        print(f"{pipeline}: all loaded {together / 2**30:.2f}, one at a time {sum(parts[largest]) / 2**30:.2f} ({largest}); " + ", ".join(f"{n} {w / 2**30:.2f} + {a / 2**30:.2f}" for n, (w, a) in parts.items()))


main()
