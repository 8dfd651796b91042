"""Checkpoints as they are published: expert by expert, in FP8, in several files; which are refused."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lim_sglang.tools.analysis.checkpoint import StreamingError, dequantized
from lim_sglang.tools.analysis.streaming import MODEL_TYPES, LayerSample, StreamedModel

from .tiny_checkpoints import CONFIGS, LAYERS, assert_streamed_as_whole, edit_config, random_ids, streamed, write_model


@pytest.mark.parametrize(("kind", "text"), [("minimax_m2", "model"), ("qwen3_5_moe", "model.language_model")])
def test_stacked_experts_are_read_as_well(kind: str, text: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, CONFIGS[kind], save_original_format=False)
    assert f"{text}.layers.2.mlp.experts.gate_up_proj" in load_file(folder / "model.safetensors")
    assert_streamed_as_whole(folder, folder)


def minimax_as_published(folder: Path) -> None:
    edit_config(folder, without=("rope_parameters", "dtype"), rope_theta=5000.0, rotary_dim=8, use_mtp=True)


def glm_as_published(folder: Path) -> None:
    """Its layer for multi-token prediction follows the others."""
    edit_config(
        folder,
        without=("rope_parameters",),
        rope_theta=5000.0,
        rope_scaling=None,
        partial_rotary_factor=0.5,
        num_nextn_predict_layers=1,
    )
    tensors = load_file(folder / "model.safetensors")
    last = {name: tensor for name, tensor in tensors.items() if f".layers.{LAYERS - 1}." in name}
    further = {name.replace(f".{LAYERS - 1}.", f".{LAYERS}.", 1): torch.zeros_like(last[name]) for name in last}
    further[f"model.layers.{LAYERS}.eh_proj.weight"] = torch.ones(48, 96)
    save_file(tensors | further, folder / "model.safetensors")


def next_as_published(folder: Path) -> None:
    edit_config(
        folder,
        without=("rope_parameters", "layer_types"),
        rope_theta=5000.0,
        rope_scaling=None,
        partial_rotary_factor=0.5,
        full_attention_interval=2,
    )


def test_dtypes_are_the_checkpoints_own(tmp_path: Path) -> None:
    """That of the weights where config.json names none; a router's bias stays float32."""
    folder = write_model(tmp_path, CONFIGS["glm4_moe"])
    tensors = load_file(folder / "model.safetensors")
    halved = {name: tensor if "e_score" in name else tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(halved, folder / "model.safetensors")
    edit_config(folder, without=("dtype",))
    model = StreamedModel(folder)
    assert model.dtype == torch.bfloat16
    seen: list[dict[str, torch.dtype]] = []

    def observe(sample: LayerSample) -> None:
        layer = model._decoder.layers[sample.view.layer]
        seen.append({name: tensor.dtype for name, tensor in layer.state_dict().items()})

    streamed(model, [random_ids(20)], samples=1, observe=observe)
    bias = "mlp.gate.e_score_correction_bias"
    assert {name for name, dtype in seen[-1].items() if dtype == torch.float32} == {bias}
    assert seen[-1]["mlp.experts.gate_up_proj"] == torch.bfloat16


# FP8

BLOCK = (32, 20)  # cuts the last blocks off


def quantize(folder: Path, plain: Path, block: tuple[int, int] | None, scale_name: str, scale_dtype: Any) -> None:
    """Make the linear layers of ``folder`` FP8, one scale per block or per row, and ``plain`` what they then mean."""
    quantized, meant = {}, load_file(folder / "model.safetensors")
    for name, weight in list(meant.items()):
        quantized[name] = weight
        if not re.search(r"(_proj|_qkvz?|w[123])\.weight$", name):
            continue
        rows, columns = block or (1, weight.shape[1])
        scales = torch.empty(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns), dtype=scale_dtype)
        quantized[name] = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        for i, j in itertools.product(*map(range, scales.shape)):
            at = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            scales[i, j] = weight[at].abs().max() / 448
            quantized[name][at] = (weight[at] / scales[i, j].float()).to(torch.float8_e4m3fn)
            meant[name][at] = quantized[name][at].float() * scales[i, j].float()
        quantized[f"{name.removesuffix('weight')}{scale_name}"] = scales
    save_file(quantized, folder / "model.safetensors")
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)}
PER_ROW = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}}


@pytest.mark.parametrize(
    ("kind", "publish", "quantization", "how"),
    [
        ("qwen3", edit_config, FP8, (BLOCK, "weight_scale_inv", torch.bfloat16)),
        ("minimax_m2", minimax_as_published, FP8, (BLOCK, "weight_scale_inv", torch.float32)),
        ("glm4_moe", glm_as_published, PER_ROW, (None, "weight_scale", torch.bfloat16)),
        ("qwen3_next", next_as_published, FP8, (BLOCK, "weight_scale_inv", torch.bfloat16)),
        ("qwen3_5_moe", edit_config, FP8, (BLOCK, "weight_scale_inv", torch.bfloat16)),
    ],
)
def test_published_fp8_checkpoints_mean_their_scaled_values(
    kind: str, publish: Callable[[Path], None], quantization: dict[str, Any], how: Any, tmp_path: Path
) -> None:
    folder, plain = (write_model(tmp_path / name, CONFIGS[kind]) for name in ("fp8", "plain"))
    quantize(folder, plain, *how)
    publish(folder)
    edit_config(folder, quantization_config=quantization)
    stored = load_file(folder / "model.safetensors")
    (query,) = (tensor for name, tensor in stored.items() if name.endswith("layers.3.self_attn.q_proj.weight"))
    assert query.dtype == torch.float8_e4m3fn
    assert_streamed_as_whole(folder, plain)


def test_one_scale_may_stand_for_a_whole_matrix() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.5, 4.0]]).to(torch.float8_e4m3fn)
    for block in (None, (128, 128)):
        assert torch.equal(dequantized(weight, torch.tensor(0.5), block), weight.float() / 2)


# Refusals


def make_fp8(folder: Path, scales: Tensor | None) -> None:
    edit_config(folder, quantization_config=FP8)
    tensors, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    if scales is not None:
        tensors[f"{name}_scale_inv"] = scales
    save_file(tensors, folder / "model.safetensors")


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


REFUSALS: dict[str, tuple[Any, str]] = {
    "no-folder": (shutil.rmtree, "holds no config.json: expected the local folder of a Hugging Face model"),
    "malformed-config": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "other-type": (
        lambda f: edit_config(f, model_type="gpt_oss"),
        f"model_type='gpt_oss' in .* is not supported: expected {', '.join(MODEL_TYPES)}$",
    ),
    "int8": (
        lambda f: edit_config(f, quantization_config=PER_ROW | {"format": "int-quantized"}),
        "format='int-quantized': expected plain ones, or quant_method fp8",
    ),
    "no-scales": (lambda f: make_fp8(f, None), "lacks the tensor model.layers.1.mlp.up_proj.weight_scale_inv"),
    "scales-of-other-blocks": (
        lambda f: make_fp8(f, torch.ones(2, 2)),
        r"weight_scale_inv of shape \[2, 2\] in .*: expected \[2, 3\]",
    ),
    "windowed": (lambda f: edit_config(f, model_type="mistral", sliding_window=16), "no layer that attends to all"),
    "no-attention": (
        lambda f: edit_config(f, model_type="qwen3_next", layer_types=["linear_attention"] * LAYERS),
        "has no layer that attends",
    ),
    "layers-not-a-number": (lambda f: edit_config(f, num_hidden_layers="x"), "config.json is not usable"),
    "no-safetensors": (lambda f: (f / "model.safetensors").unlink(), "holds neither model.safetensors nor model.safe"),
    "cut-off": (cut_off, "model.safetensors cannot be read"),
    "wrong-index": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "index.json cannot be read: Key"),
    "other-shape": (lambda f: edit_config(f, intermediate_size=32), r"of shape \[64, 48\] in .* expected \[32, 48\]"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(case: str, tmp_path: Path) -> None:
    damage, expected = REFUSALS[case]
    folder = write_model(tmp_path / "model", CONFIGS["llama"])
    damage(folder)
    with pytest.raises(StreamingError, match=expected) as caught:
        streamed(StreamedModel(folder), [random_ids(20)])
    assert str(folder) in str(caught.value)


def test_a_lost_expert_is_named_as_it_is_published(tmp_path: Path) -> None:
    folder, name = write_model(tmp_path, CONFIGS["minimax_m2"]), "model.layers.1.block_sparse_moe.experts.3.w3.weight"
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(StreamingError, match=f"lacks the tensor {re.escape(name)}; fetch the weights again"):
        streamed(StreamedModel(folder), [random_ids(20)])
