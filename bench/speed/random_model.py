"""Random weights in the published layout of a model's config.json, for `lim-sglang calibrate` to be timed on.

Tensors are bfloat16, or FP8 with scales where the config says so. The tokenizer is another model's: its texts mean
nothing here, but there are as many tokens of them as with any other.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from bench import driver
from lim_sglang.tools.analysis.checkpoint import SCALES, scale_block, scale_shape
from lim_sglang.tools.analysis.streaming import MODEL_TYPES, read_config

STD = 0.02  # of matrices, that of most models before training


def main() -> None:
    args = parse()
    make(args.config, args.folder, args.tokenizer, args.device)
    size = sum(path.stat().st_size for path in args.folder.glob("*.safetensors"))
    print(f"{size / 2**30:.1f} GiB of random weights; next: lim-sglang calibrate {args.folder}")


def parse() -> argparse.Namespace:
    parser = driver.parser(__doc__)
    parser.add_argument("config", type=Path, help="config.json of the model")
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument("--tokenizer", type=Path, help="folder that holds a tokenizer (the embedded model's)")
    on = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=on, help="where the numbers are drawn (a GPU if there is one)")
    args = parser.parse_args()
    if args.tokenizer is None:
        from lim_sglang.tools.servers.embedded_model import ensure_model

        args.tokenizer = ensure_model()
    return args


def make(config_file: Path, folder: Path, tokenizer: Path, device: str) -> None:
    """Write config, tokenizer and weights, one file per layer and one for the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(config_file, folder / "config.json")
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder)
    config = read_config(folder)
    torch.manual_seed(0)
    file_of: dict[str, str] = {}
    for number, (part, shapes) in enumerate(sorted(published_shapes(config).items())):
        tensors: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            tensors |= random_tensors(name, shape, folder, config, device)
        file_name = f"model-{number:05}.safetensors"
        save_file(tensors, folder / file_name)
        file_of |= dict.fromkeys(tensors, file_name)
        print(f"{part}: {len(tensors)} tensors", flush=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


def published_shapes(config: Any) -> dict[str, dict[str, torch.Size]]:
    """By layer, "" for what lies outside of them: the published tensors' names and shapes."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes: dict[str, dict[str, torch.Size]] = defaultdict(dict)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        layer = name.split(".")[2] if name.startswith("model.layers.") else ""
        names = MODEL_TYPES[config.model_type].published(name, tensor.shape)
        shape = tensor.shape if len(names) == 1 else tensor.view(len(names), -1, tensor.shape[-1])[0].shape
        shapes[layer] |= dict.fromkeys(names, shape)
    return shapes


def random_tensors(name: str, shape: torch.Size, folder: Path, config: Any, device: str) -> dict[str, Tensor]:
    """What a checkpoint stores for ``name``: norms of ones, biases of zeros, matrices, and the scales of FP8."""
    if len(shape) == 1:
        return {name: torch.full(shape, float("norm" in name), dtype=torch.bfloat16)}
    quantization = getattr(config, "quantization_config", None)
    drawn = torch.randn(shape, device=device, dtype=torch.bfloat16)
    if not quantization or ".layers." not in name or name.endswith(".gate.weight"):
        return {name: drawn.mul_(STD).cpu()}
    block = scale_block(folder, quantization)
    scales = torch.full(scale_shape(shape, block or (1, shape[-1])), STD)
    suffix = SCALES[quantization["quant_method"] != "fp8"]
    return {name: drawn.to(torch.float8_e4m3fn).cpu(), name + suffix: scales}


if __name__ == "__main__":
    main()
