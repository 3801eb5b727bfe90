"""Random UNet2DConditionModels with random weights and inputs, and what diffusers computes of them in float64, as cases for `bruit verify`.

    python scripts/diffusers/fuzz_unet.py OUT --count 60 --seed 0
    node scripts/run.mjs scripts/diffusers/verify_all.ts OUT

Configurations that diffusers itself cannot build or run are drawn again.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch.utils._pytree import tree_map


def draw(r):
    """A configuration, and the extra inputs that it asks for."""
    levels = r.choice([2, 2, 3])
    widths = [r.choice([8, 16, 24]) for _ in range(levels)]
    simple = r.random() < 0.35
    cross, plain = ("SimpleCrossAttn", "Resnet") if simple else ("CrossAttn", "")
    attends = [r.random() < 0.6 for _ in widths]
    down = [f"{cross}DownBlock2D" if a else "ResnetDownsampleBlock2D" if simple or r.random() < 0.2 else "DownBlock2D" for a in attends]
    up = [f"{cross}UpBlock2D" if a else "ResnetUpsampleBlock2D" if simple or r.random() < 0.2 else "UpBlock2D" for a in reversed(attends)]
    mid = "UNetMidBlock2DSimpleCrossAttn" if simple else r.choice(["UNetMidBlock2DCrossAttn", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None])
    text = r.choice([12, 20])
    config = dict(
        sample_size=8,
        in_channels=r.choice([3, 4, 9]),
        out_channels=r.choice([3, 4, 8]),
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=up,
        mid_block_type=mid,
        layers_per_block=r.choice([1, 1, 2]),
        norm_num_groups=r.choice([4, 8]),
        cross_attention_dim=text,
        attention_head_dim=r.choice([4, 8]) if simple else r.choice([2, 4, [r.choice([1, 2, 4]) for _ in widths]]),
        act_fn=r.choice(["silu", "gelu", "mish"]),
        resnet_time_scale_shift="scale_shift" if simple or r.random() < 0.4 else "default",
        flip_sin_to_cos=r.random() < 0.7,
        freq_shift=r.choice([0, 1]),
        center_input_sample=r.random() < 0.2,
        use_linear_projection=r.random() < 0.5,
        upcast_attention=r.random() < 0.2,
        downsample_padding=r.choice([1, 1, 0]),
        mid_block_scale_factor=r.choice([1, 1.4142135]),
        resnet_out_scale_factor=r.choice([1.0, 1.4142135]),
        resnet_skip_time_act=r.random() < 0.3,
        time_embedding_type=r.choice(["positional", "positional", "fourier"]),
        timestep_post_act=r.choice([None, None, "silu"]),
        time_embedding_act_fn=r.choice([None, None, "gelu"]),
        time_cond_proj_dim=r.choice([None, None, 6]),
        conv_in_kernel=r.choice([3, 3, 1, 5]),
        conv_out_kernel=r.choice([3, 3, 1]),
        cross_attention_norm=r.choice([None, "layer_norm", "group_norm"]) if simple else None,
        only_cross_attention=[r.random() < 0.3 for _ in widths],
        transformer_layers_per_block=1 if simple else r.choice([1, 1, [r.choice([1, 2]) for _ in widths]]),
        dual_cross_attention=not simple and r.random() < 0.1,
    )
    more = {}
    tokens = 77 + 257 if config["dual_cross_attention"] else r.choice([5, 7])
    states = text
    kind = r.choice([None, None, None, "text_proj", "text_image_proj", "image_proj"])
    if config["dual_cross_attention"]:
        kind = None
    if kind:
        states = config["encoder_hid_dim"] = r.choice([10, 14])
        config["encoder_hid_dim_type"] = kind
    if kind in ("text_image_proj", "image_proj"):
        more["image_embeds"] = (2, states if kind == "image_proj" else text)
    addition = r.choice([None, None, "text", "text_time", "text_image", "image"])
    if kind == "image_proj" and addition in ("text", "text_image"):
        addition = "image"
    if addition == "image" and kind is None:
        addition = None
    config["addition_embed_type"] = addition
    if addition == "text":
        config["addition_embed_type_num_heads"] = 2
    if addition == "text_time":
        config["addition_time_embed_dim"] = 4
        config["projection_class_embeddings_input_dim"] = 6 * 4 + 11
        more |= {"text_embeds": (2, 11), "time_ids": (2, 6)}
    if addition == "text_image":
        more |= {"text_embeds": (2, text), "image_embeds": (2, text)}
    if addition == "image":
        more["image_embeds"] = (2, states)
    label = None
    if r.random() < 0.5:
        label = r.choice(["timestep", "identity", "projection", "simple_projection", "count"])
        if label.endswith("projection"):
            if addition == "text_time":
                label = "timestep"
            else:
                config["projection_class_embeddings_input_dim"] = 9
        if label == "count":
            config["num_class_embeds"] = 5
        else:
            config["class_embed_type"] = label
        config["class_embeddings_concat"] = label != "identity" and r.random() < 0.2
    return config, more, (tokens, states), label


def wide(x):
    return tree_map(lambda t: t.double() if torch.is_tensor(t) and t.is_floating_point() else t, x)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path)
    options.add_argument("--count", type=int, default=60)
    options.add_argument("--seed", type=int, default=0)
    o = options.parse_args()
    r = random.Random(o.seed)
    torch.manual_seed(o.seed)
    made = refused = 0
    while made < o.count:
        config, more, (tokens, states), label = draw(r)
        height, width = r.choice([(8, 8), (8, 12), (7, 9)])
        width4 = config["block_out_channels"][0] * 4
        try:
            model = UNet2DConditionModel(**config).eval()
            for p in model.parameters():
                p.data += 0.05 * torch.randn_like(p)
            io = {"sample": torch.randn(2, config["in_channels"], height, width), "timestep": torch.tensor([3.0, 717.0])}
            call = {}
            if config.get("encoder_hid_dim_type") != "image_proj":
                io["encoder_hidden_states"] = torch.randn(2, tokens, states)
                if r.random() < 0.3 and not config["dual_cross_attention"] and config.get("encoder_hid_dim_type") != "text_image_proj":
                    mask = torch.ones(2, tokens)
                    mask[1, tokens // 2 :] = 0
                    io["encoder_attention_mask"] = call["encoder_attention_mask"] = mask
            added = {name: torch.randn(shape) for name, shape in more.items()}
            if "time_ids" in added:
                added["time_ids"] = torch.tensor([[64.0, 80, 0, 8, 64, 64], [32, 32, 4, 0, 32, 48]])
            io |= added
            if label:
                labels = {"timestep": torch.tensor([5.0, 100.0]), "count": torch.tensor([1, 4])}.get(label)
                if labels is None:
                    labels = torch.randn(2, width4 if label == "identity" else 9)
                io["class_labels"] = labels.int() if label == "count" else labels
                call["class_labels"] = labels
            if config["time_cond_proj_dim"]:
                io["timestep_cond"] = call["timestep_cond"] = torch.randn(2, config["time_cond_proj_dim"])
            with torch.no_grad():
                single = model(io["sample"], io["timestep"], io.get("encoder_hidden_states"), added_cond_kwargs=added, **call).sample
                args, named = wide((io["sample"], io["timestep"], io.get("encoder_hidden_states"))), {k: wide(v) for k, v in call.items()}
                exact = model.double()(*args, added_cond_kwargs=wide(added), **named).sample
                model.float()
            # A norm over a few numbers can make rounding large: then nothing is shown by a difference.
            if not (single - exact).abs().max() < 2e-5 * exact.abs().max():
                raise ValueError(f"float32 is {(single - exact).abs().max():.1e} away from float64")
            io["output"] = exact.float()
        except Exception as e:  # noqa: BLE001: what diffusers cannot do is not asked of others
            refused += 1
            print(f"drawn again: {type(e).__name__}: {str(e)[:100]}")
            continue
        folder = o.out / f"{made:03}"
        model.save_pretrained(folder)
        save_file({k: v.float().contiguous() if v.is_floating_point() else v for k, v in io.items()}, folder / "io.safetensors")
        made += 1
    print(json.dumps({"made": made, "drawn again": refused}))


main()
