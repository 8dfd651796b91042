"""Teacher-forced blocks against one step at a time, Hugging Face's own attention, and the written-out oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    MellumConfig,
    MellumForCausalLM,
)

from lim_sglang.tools.analysis.model import LayerView, PolicyModel, attending_layers
from lim_sglang.tools.analysis.policies import Dense, LessIsMore

from ....e2e.hf_oracle import OracleSettings, SparseOracle
from ..tiny_model import CONFIG, PLAN

PREFIX, STEPS = 70, 9
SPLIT = CONFIG.parts


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return torch.randint(0, 97, (PREFIX + STEPS,), generator=torch.Generator().manual_seed(1)).tolist()


def test_dense_is_hugging_faces_own_attention(folder: Path, model: PolicyModel, ids: list[int]) -> None:
    own = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = own(torch.tensor([ids])).logits[0]
    prefix = model.prefill(ids[:PREFIX])
    logits, longer = model.decode(prefix, ids[PREFIX:], Dense())
    torch.testing.assert_close(prefix.logits, expected[PREFIX - 1], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits, expected[PREFIX:], rtol=0, atol=1e-4)
    assert (prefix.length, longer.length) == (PREFIX, PREFIX + STEPS)
    assert prefix.cache.get_seq_length() == PREFIX, "a prefix serves many blocks"


def test_a_prefix_of_a_hybrid_serves_many_blocks_but_is_not_cut(hybrid_folder: Path, ids: list[int]) -> None:
    """States of layers that do not attend are written in place, so that every block needs its own."""
    own = AutoModelForCausalLM.from_pretrained(hybrid_folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = own(torch.tensor([ids])).logits[0]
    model = PolicyModel.load(hybrid_folder)
    prefix = model.prefill(ids[:PREFIX])
    for _ in range(2):
        logits, longer = model.decode(prefix, ids[PREFIX:-2], Dense())
        torch.testing.assert_close(logits, expected[PREFIX:-2], rtol=1e-4, atol=1e-3)
    for step in (-2, -1):
        logits, longer = model.decode(longer, [ids[step]], Dense())
        torch.testing.assert_close(logits[0], expected[step], rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="cannot be cut; prefill the shorter one"):
        longer.cut(PREFIX, logits[0])


def test_lessismore_is_the_oracles(folder: Path, model: PolicyModel, ids: list[int]) -> None:
    """The second implementation of the algorithm, which shares no code with this one."""
    settings = OracleSettings(24, 0.25, 2, (1, 4), dense_layers=(0,))
    oracle = SparseOracle(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), settings)
    expected = oracle.score([(ids[: PREFIX + 1], ids[PREFIX + 1 :])])[0]
    assert oracle.sparse_steps > 0
    # The oracle feeds ids[PREFIX] by prefill; so does this, and decodes the rest.
    prefix = model.prefill(ids[: PREFIX + 1])
    logits, _ = model.decode(prefix, ids[PREFIX + 1 : -1], LessIsMore(PLAN, SPLIT))
    found = torch.cat([prefix.logits[None], logits]).log_softmax(-1)
    at = torch.tensor(ids[PREFIX + 1 :])[:, None]
    torch.testing.assert_close(found.gather(1, at)[:, 0], torch.tensor(expected), rtol=0, atol=2e-4)


def test_the_observer_sees_every_layer_and_what_was_read(model: PolicyModel, ids: list[int]) -> None:
    seen: list[tuple[int, list[int]]] = []

    def observe(view: LayerView, mask: torch.Tensor) -> None:
        seen.append((view.layer, (mask & view.causal).sum(-1)[:, 0].tolist()))

    model.decode(model.prefill(ids[:PREFIX]), ids[PREFIX:], LessIsMore(PLAN, SPLIT), observe)
    everything = list(range(PREFIX + 1, PREFIX + STEPS + 1))
    sparse = [24] * STEPS
    assert seen == [(0, everything), (1, everything), (2, sparse), (3, sparse), (4, everything), (5, sparse)]


def test_layers_with_a_window_keep_it_whatever_the_policy() -> None:
    """Dense steps give what the model itself says, and a policy is asked for the other layers alone."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 8}
    kinds = ["sliding_attention", "full_attention"] * 2
    rope = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in kinds}
    config = MellumConfig(
        **sizes,
        num_attention_heads=6,
        num_key_value_heads=2,
        layer_types=kinds,
        mlp_layer_types=["dense"] * 4,
        sliding_window=5,
        rope_parameters=rope,
    )
    itself = MellumForCausalLM(config).eval()
    ids, asked = list(range(40)), list[int]()
    with torch.inference_mode():
        expected = itself(torch.tensor([ids])).logits[0, 29:]
    model = PolicyModel(itself)
    found, _ = model.decode(model.prefill(ids[:29]), ids[29:], Dense(), lambda view, _: asked.append(view.layer))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert attending_layers(config) == (1, 3) == tuple(asked)


def test_attention_that_is_not_plain_is_refused() -> None:
    config = Gemma2Config(vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=2, head_dim=8)
    with pytest.raises(ValueError, match=r"softcap=50\.0: expected plain attention"):
        PolicyModel(Gemma2ForCausalLM(config)).prefill(range(16))
