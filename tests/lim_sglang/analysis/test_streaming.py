"""Layer by layer against the ordinary forward pass; what samples hold; which folders are refused."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Glm4MoeConfig,
    LlamaConfig,
    MiniMaxM2Config,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from lim_sglang.analysis.checkpoint import StreamingError, dequantized
from lim_sglang.analysis.model import PolicyModel
from lim_sglang.analysis.policies import Dense
from lim_sglang.analysis.streaming import MODEL_TYPES, LayerSample, StreamedModel
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
HALF_ROTARY = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
EXPERTS = 6
GLM: dict[str, Any] = SHAPE | {
    "rope_parameters": HALF_ROTARY,
    "attention_bias": True,
    "moe_intermediate_size": 20,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 2.5,
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
    "qwen3_moe": Qwen3MoeConfig(
        **SHAPE, moe_intermediate_size=20, num_experts=EXPERTS, num_experts_per_tok=2, norm_topk_prob=True
    ),
    "qwen3_moe-some-dense": Qwen3MoeConfig(
        **SHAPE, num_experts=EXPERTS, num_experts_per_tok=2, mlp_only_layers=[1], attention_bias=True
    ),
    "glm4_moe": Glm4MoeConfig(**GLM, first_k_dense_replace=2, use_qk_norm=True),
    "glm4_moe-groups": Glm4MoeConfig(**GLM, first_k_dense_replace=1, n_group=3, topk_group=2),
    "minimax_m2": MiniMaxM2Config(
        **SHAPE, rope_parameters=HALF_ROTARY, num_local_experts=EXPERTS, num_experts_per_tok=2
    ),
}
PUBLISHED = {  # names in the checkpoints on the hub, of an expert's matrices and of a router's bias
    "qwen3_moe": ("mlp.experts.3.gate_proj.weight", "mlp.experts.3.up_proj.weight", "mlp.experts.3.down_proj.weight"),
    "glm4_moe": (
        *("mlp.experts.3.gate_proj.weight", "mlp.experts.3.up_proj.weight", "mlp.experts.3.down_proj.weight"),
        *("mlp.gate.e_score_correction_bias", "mlp.shared_experts.gate_proj.weight"),
    ),
    "minimax_m2": (
        *(f"block_sparse_moe.experts.3.{name}.weight" for name in ("w1", "w2", "w3")),
        *("block_sparse_moe.gate.weight", "block_sparse_moe.e_score_correction_bias"),
    ),
}


def write_model(folder: Path, config: PretrainedConfig, **options: Any) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, weight in itertools.chain(model.named_parameters(), model.named_buffers()):
        if "norm" in name or "bias" in name:  # ones and zeros as made, which would hide a norm or bias left out
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder, **options)
    return folder


def edit_config(folder: Path, without: tuple[str, ...] = (), **changes: Any) -> None:
    path = folder / "config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in without}
    path.write_text(json.dumps(kept | changes))


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


def assert_streamed_as_whole(folder: Path, plain: Path) -> None:
    """Hidden states and logits streamed from ``folder`` are those of transformers' own model of ``plain``."""
    windows = [random_ids(33), random_ids(20, seed=2)]
    whole = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, attn_implementation="eager").eval()
    streaming = StreamedModel(folder, dtype=torch.float32)
    for ids, stages in zip(windows, streamed(streaming, windows), strict=True):
        with torch.inference_mode():
            expected = whole(torch.tensor([ids]), output_hidden_states=True)
        assert len(stages) == LAYERS + 1
        for stage, hidden in list(zip(stages, expected.hidden_states, strict=True))[:-1]:  # the last one is normed
            torch.testing.assert_close(stage, hidden, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(streaming.logits(stages[-1]), expected.logits, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", CONFIGS)
def test_streamed_is_the_ordinary_forward_pass(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, CONFIGS[kind])
    assert_streamed_as_whole(folder, folder)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_mixtures_are_tested_in_the_published_layout(kind: str, tmp_path: Path) -> None:
    tensors = load_file(write_model(tmp_path, CONFIGS[kind]) / "model.safetensors")
    assert {f"model.layers.2.{name}" for name in PUBLISHED[kind]} <= tensors.keys()


def test_stacked_experts_are_read_as_well(tmp_path: Path) -> None:
    folder = write_model(tmp_path, CONFIGS["minimax_m2"], save_original_format=False)
    assert "model.layers.2.mlp.experts.gate_up_proj" in load_file(folder / "model.safetensors")
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
    further = {name.replace(f".{LAYERS - 1}.", f".{LAYERS}.", 1): torch.ones_like(last[name]) for name in last}
    further[f"model.layers.{LAYERS}.eh_proj.weight"] = torch.ones(48, 96)
    save_file(tensors | further, folder / "model.safetensors")


@pytest.mark.parametrize(("kind", "publish"), [("minimax_m2", minimax_as_published), ("glm4_moe", glm_as_published)])
def test_published_configurations_mean_the_same(kind: str, publish: Callable[[Path], None], tmp_path: Path) -> None:
    folder, plain = (write_model(tmp_path / name, CONFIGS[kind]) for name in ("published", "plain"))
    publish(folder)
    assert_streamed_as_whole(folder, plain)


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
        if not re.search(r"(_proj|w[123])\.weight$", name):
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
QUANTIZATIONS: dict[str, tuple[str, Any, tuple[int, int] | None, str, torch.dtype]] = {
    "qwen3": ("qwen3", FP8, BLOCK, "weight_scale_inv", torch.bfloat16),
    "qwen3_moe": ("qwen3_moe", FP8, BLOCK, "weight_scale_inv", torch.bfloat16),
    "minimax_m2": ("minimax_m2", FP8, BLOCK, "weight_scale_inv", torch.float32),
    "glm4_moe": ("glm4_moe", FP8, BLOCK, "weight_scale_inv", torch.float32),
    "glm4_moe-per-row": ("glm4_moe", PER_ROW, None, "weight_scale", torch.bfloat16),
}


@pytest.mark.parametrize("case", QUANTIZATIONS)
def test_fp8_weights_are_their_scaled_values(case: str, tmp_path: Path) -> None:
    kind, quantization, *how = QUANTIZATIONS[case]
    folder, plain = (write_model(tmp_path / name, CONFIGS[kind]) for name in ("fp8", "plain"))
    quantize(folder, plain, *how)
    edit_config(folder, quantization_config=quantization)
    stored = load_file(folder / "model.safetensors")
    assert stored["model.layers.2.self_attn.q_proj.weight"].dtype == torch.float8_e4m3fn
    assert_streamed_as_whole(folder, plain)


def test_one_scale_may_stand_for_a_whole_matrix() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.5, 4.0]]).to(torch.float8_e4m3fn)
    for block in (None, (128, 128)):
        assert torch.equal(dequantized(weight, torch.tensor(0.5), block), weight.float() / 2)


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


@pytest.mark.parametrize("kind", ["llama", "minimax_m2"])
def test_weights_are_there_one_layer_at_a_time(kind: str, tmp_path: Path) -> None:
    model = StreamedModel(write_model(tmp_path, CONFIGS[kind]))
    in_memory: list[set[int]] = []

    def observe(_sample: LayerSample) -> None:
        layers = enumerate(model._decoder.layers)
        in_memory.append({n for n, layer in layers if not all(p.is_meta for p in layer.state_dict().values())})

    streamed(model, [random_ids(20)], samples=1, observe=observe)
    assert in_memory == [{layer} for layer in range(LAYERS)]
    assert all(tensor.is_meta for tensor in model._causal_lm.state_dict().values())


@pytest.mark.parametrize("kind", CONFIGS)
def test_samples_are_what_decode_steps_see(kind: str, tmp_path: Path) -> None:
    """The last tokens of a text see what the same tokens see as decode steps behind the rest of it."""
    ids, folder = random_ids(30), write_model(tmp_path, CONFIGS[kind])
    policy_model = PolicyModel.load(folder)
    views = []
    prefix = policy_model.prefill(ids[:-SAMPLES])
    policy_model.decode(prefix, ids[-SAMPLES:], Dense(), lambda view, _mask: views.append(view))
    samples: list[LayerSample] = []
    streamed(StreamedModel(folder), [ids], samples=SAMPLES, observe=samples.append)
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


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def make_fp8(folder: Path, scales: Tensor | None = None) -> None:
    edit_config(folder, quantization_config=FP8)
    tensors, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    if scales is not None:
        tensors[f"{name}_scale_inv"] = scales
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
    "all-types-listed": (lambda f: edit_config(f, model_type="gpt_oss"), f"expected {', '.join(MODEL_TYPES)}$"),
    "awq": (lambda f: edit_config(f, quantization_config={"quant_method": "awq"}), "quantized by quant_method='awq'"),
    "int8": (
        lambda f: edit_config(f, quantization_config=PER_ROW | {"format": "int-quantized"}),
        "format='int-quantized': expected plain ones, or quant_method fp8",
    ),
    "quantized-by-a-word": (lambda f: edit_config(f, quantization_config="fp8"), "config.json is not usable"),
    "block-size": (
        lambda f: edit_config(f, quantization_config=FP8 | {"weight_block_size": [128, 0]}),
        r"weight_block_size=\[128, 0\] .* expected two sizes",
    ),
    "no-scales": (make_fp8, r"lacks the tensor model.layers.1.mlp.up_proj.weight_scale_inv"),
    "scales-of-other-blocks": (
        lambda f: make_fp8(f, torch.ones(2, 2)),
        r"weight_scale_inv of shape \[2, 2\] in .*: expected \[2, 3\]",
    ),
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
