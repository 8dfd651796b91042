"""Layer by layer against the ordinary forward pass; what samples hold; which folders are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from lim_sglang.analysis.model import PolicyModel
from lim_sglang.analysis.policies import Dense
from lim_sglang.analysis.streaming import MODEL_TYPES, LayerSample, StreamedModel, StreamingError
from lim_sglang.servers.embedded_model import ensure_model

LAYERS, VOCABULARY, SAMPLES = 4, 97, 5
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama-rope-scaling": LlamaConfig(
        **SHAPE,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "mistral": MistralConfig(**SHAPE, sliding_window=512),  # no smaller than the context
    "qwen2": Qwen2Config(**SHAPE | {"head_dim": 8}),
    "qwen3": Qwen3Config(**SHAPE),
}


def write_model(folder: Path, config: PretrainedConfig, **options: Any) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if "norm" in name or "bias" in name:  # ones and zeros as made, which would hide a norm or bias left out
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder, **options)
    return folder


def random_ids(length: int, seed: int = 1) -> list[int]:
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def streamed(model: StreamedModel, windows: list[list[int]], **options: Any) -> list[list[Tensor]]:
    """The hidden states at every stage, by text."""
    stages = [list(hidden) for hidden in model.forward(windows, **options)]
    return [list(by_text) for by_text in zip(*stages, strict=True)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama"), CONFIGS["llama"])


def test_every_supported_type_is_tested() -> None:
    assert {config.model_type for config in CONFIGS.values()} == set(MODEL_TYPES)


@pytest.mark.parametrize("kind", CONFIGS)
def test_streamed_is_the_ordinary_forward_pass(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, CONFIGS[kind])
    windows = [random_ids(33), random_ids(20, seed=2)]
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    streaming = StreamedModel(folder, dtype=torch.float32)
    for ids, stages in zip(windows, streamed(streaming, windows), strict=True):
        with torch.inference_mode():
            expected = whole(torch.tensor([ids]), output_hidden_states=True)
        assert len(stages) == LAYERS + 1
        for stage, hidden in list(zip(stages, expected.hidden_states, strict=True))[:-1]:  # the last one is normed
            torch.testing.assert_close(stage, hidden, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(streaming.logits(stages[-1]), expected.logits, rtol=1e-4, atol=1e-3)


def test_the_real_model_is_streamed_exactly() -> None:
    folder, ids = ensure_model(quiet=True), list(range(1000, 1100))
    (stages,) = streamed(StreamedModel(folder, dtype=torch.float32), [ids])
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = whole(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for stage, hidden in zip(stages[:-1], expected[:-1], strict=True):  # the last one is normed
        torch.testing.assert_close(stage, hidden, rtol=1e-3, atol=1e-2)


def test_several_files_with_an_index_are_one_model(llama: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path, CONFIGS["llama"], max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    ids = random_ids(20)
    (one,), (other,) = (streamed(StreamedModel(path), [ids]) for path in (llama, folder))
    assert torch.equal(one[-1], other[-1])


def test_weights_are_there_one_layer_at_a_time(llama: Path) -> None:
    model = StreamedModel(llama)
    in_memory: list[set[int]] = []

    def observe(_sample: LayerSample) -> None:
        layers = enumerate(model._decoder.layers)
        in_memory.append({n for n, layer in layers if not all(p.is_meta for p in layer.parameters())})

    streamed(model, [random_ids(20)], samples=1, observe=observe)
    assert in_memory == [{layer} for layer in range(LAYERS)]
    assert all(parameter.is_meta for parameter in model._causal_lm.parameters())


def test_samples_are_what_decode_steps_see(llama: Path) -> None:
    """The last tokens of a text see what the same tokens see as decode steps behind the rest of it."""
    ids = random_ids(30)
    policy_model = PolicyModel.load(llama)
    views = []
    prefix = policy_model.prefill(ids[:-SAMPLES])
    policy_model.decode(prefix, ids[-SAMPLES:], Dense(), lambda view, _mask: views.append(view))
    samples: list[LayerSample] = []
    streamed(StreamedModel(llama), [ids], samples=SAMPLES, observe=samples.append)
    assert [sample.view.layer for sample in samples] == list(range(LAYERS))
    for sample, view in zip(samples, views, strict=True):
        assert sample.window == 0
        assert sample.view.scale == view.scale
        assert torch.equal(sample.view.lengths, view.lengths)
        for name in ("queries", "keys", "values"):
            torch.testing.assert_close(getattr(sample.view, name), getattr(view, name), rtol=0, atol=1e-4)
        for got, expected, length in zip(sample.view.scores, view.scores, view.lengths, strict=True):
            torch.testing.assert_close(got[:, :length], expected[:, :length], rtol=1e-4, atol=1e-3)


def test_residual_and_projection_are_the_layers_own(llama: Path) -> None:
    """The projected outputs of the heads are what the layer adds to its input before its MLP."""
    whole = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32, attn_implementation="eager").eval()
    samples: list[LayerSample] = []
    (stages,) = streamed(StreamedModel(llama), [random_ids(30)], samples=SAMPLES, observe=samples.append)
    for index, sample in enumerate(samples):
        view, layer = sample.view, whole.model.layers[index]
        grouped = view.weights(view.causal).unflatten(1, (2, 3))
        heads = torch.einsum("qhgn,nhd->qhgd", grouped, view.values).flatten(1, 2)
        with torch.inference_mode():
            middle = stages[index][0, -SAMPLES:] + sample.project(heads)
            expected = middle + layer.mlp(layer.post_attention_layernorm(middle))
        torch.testing.assert_close(sample.residual, expected, rtol=1e-4, atol=1e-3)


# Refusals


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def wrong_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}}')


def lost_file(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


REFUSALS: dict[str, tuple[Any, str]] = {
    "no-folder": (shutil.rmtree, "is no folder: expected the local folder of a Hugging Face model"),
    "no-config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "malformed-config": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "config-is-a-list": (lambda f: (f / "config.json").write_text("[]"), "config.json cannot be read"),
    "other-type": (lambda f: edit_config(f, model_type="gpt_oss"), "model_type='gpt_oss'"),
    "no-type": (lambda f: edit_config(f, model_type=None), "model_type=None"),
    "quantized": (lambda f: edit_config(f, quantization_config={"quant_method": "fp8"}), "quantized"),
    "windowed": (lambda f: edit_config(f, model_type="mistral", sliding_window=16), "sliding-window"),
    "layers-not-a-number": (lambda f: edit_config(f, num_hidden_layers="x"), "config.json is not usable"),
    "no-safetensors": (only_a_pickle, "holds neither model.safetensors nor model.safetensors.index.json"),
    "lost-tensor": (lose_a_tensor, "lacks the tensor model.layers.2.mlp.up_proj.weight"),
    "cut-off": (cut_off, "model.safetensors cannot be read"),
    "wrong-index": (wrong_index, "index.json cannot be read: KeyError"),
    "lost-file": (lost_file, "model-00001-of-00001.safetensors cannot be read"),
    "other-shape": (lambda f: edit_config(f, intermediate_size=32), r"of shape \[64, 48\] in .* expected \[32, 48\]"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(case: str, llama: Path, tmp_path: Path) -> None:
    damage, expected = REFUSALS[case]
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    damage(folder)
    with pytest.raises(StreamingError, match=expected) as caught:
        streamed(StreamedModel(folder), [random_ids(20)])
    assert str(folder) in str(caught.value)
