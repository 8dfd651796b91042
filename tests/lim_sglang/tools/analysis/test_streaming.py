"""Layer by layer against the ordinary forward pass; what samples hold."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lim_sglang.tools.analysis.model import PolicyModel
from lim_sglang.tools.analysis.policies import Dense
from lim_sglang.tools.analysis.streaming import MODEL_TYPES, LayerSample, StreamedModel

from .tiny_checkpoints import (
    CONFIGS,
    LAYERS,
    assert_streamed_as_whole,
    attending,
    random_ids,
    streamed,
    write_model,
)

SAMPLES = 5


def test_the_page_lists_every_supported_type() -> None:
    page = (files("lim_sglang") / "docs" / "budget.md").read_text()
    (listed,) = re.findall(r"a model of type ([^:]*) as published", page)
    assert re.findall(r"`(\w+)`", listed) == [*MODEL_TYPES]
    assert {config.model_type for config in CONFIGS.values()} == set(MODEL_TYPES), "all are tested"


@pytest.mark.parametrize("kind", CONFIGS)
def test_streamed_is_the_ordinary_forward_pass(kind: str, tmp_path: Path) -> None:
    """From several files with an index; other tests read one file."""
    folder = write_model(tmp_path, CONFIGS[kind], max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert_streamed_as_whole(folder, folder)


def test_weights_are_there_one_layer_at_a_time(tmp_path: Path) -> None:
    model = StreamedModel(write_model(tmp_path, CONFIGS["minimax_m2"]))
    in_memory: list[set[int]] = []

    def observe(_sample: LayerSample) -> None:
        layers = enumerate(model._decoder.layers)
        in_memory.append({n for n, layer in layers if not all(p.is_meta for p in layer.state_dict().values())})

    streamed(model, [random_ids(20)], samples=1, observe=observe)
    assert in_memory == [{layer} for layer in range(LAYERS)]
    assert all(tensor.is_meta for tensor in model._causal_lm.state_dict().values())


@pytest.mark.parametrize("kind", CONFIGS)
def test_samples_are_what_decode_steps_see(kind: str, tmp_path: Path) -> None:
    """The last tokens of a text see what the same tokens see as decode steps behind the rest of it.

    Only layers that attend are sampled.
    """
    ids, folder = random_ids(30), write_model(tmp_path, CONFIGS[kind])
    policy_model = PolicyModel.load(folder)
    views = []
    prefix = policy_model.prefill(ids[:-SAMPLES])
    policy_model.decode(prefix, ids[-SAMPLES:], Dense(), lambda view, _mask: views.append(view))
    samples: list[LayerSample] = []
    streamed(StreamedModel(folder), [ids], samples=SAMPLES, observe=samples.append)
    assert [sample.view.layer for sample in samples] == [view.layer for view in views] == attending(kind)
    for sample, view in zip(samples, views, strict=True):
        assert sample.window == 0
        assert sample.view.scale == view.scale
        assert torch.equal(sample.view.lengths, view.lengths)
        for name in ("queries", "keys", "values"):
            torch.testing.assert_close(getattr(sample.view, name), getattr(view, name), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3_next", "qwen3_5_text"])
def test_residual_and_projection_are_the_layers_own(kind: str, tmp_path: Path) -> None:
    """The projected outputs of the heads, gated in hybrids, are what the layer adds to its input before its MLP."""
    folder = write_model(tmp_path, CONFIGS[kind])
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    samples: list[LayerSample] = []
    (stages,) = streamed(StreamedModel(folder), [random_ids(30)], samples=SAMPLES, observe=samples.append)
    for index, sample in zip(attending(kind), samples, strict=True):
        view, layer = sample.view, whole.model.layers[index]
        grouped = view.weights(view.causal).unflatten(1, (2, 3))
        heads = torch.einsum("qhgn,nhd->qhgd", grouped, view.values).flatten(1, 2)
        with torch.inference_mode():
            middle = stages[index][:, -SAMPLES:] + sample.project(heads)
            (expected,) = middle + layer.mlp(layer.post_attention_layernorm(middle))
        torch.testing.assert_close(sample.residual, expected, rtol=1e-4, atol=1e-3)
