"""Gated delta net layers on a CPU: each stand-in against Hugging Face's own functions and layers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen3_5
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

import lim_cpu_host as cpu_host
from lim_cpu_host import gated_delta_net as gdn
from lim_patches.cpu import gated_norm, shared_expert_gate

from .conftest import switched

KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM, WIDTH = 2, 4, 8, 12, 4
CHANNELS = 2 * KEY_HEADS * KEY_DIM + VALUE_HEADS * VALUE_DIM
LENGTHS = [5, 1, 0, 70, 2, 3]  # of a ragged batch; the rule's definition works in chunks of 64
SLOTS = torch.tensor([6, 2, 0, 3, -1, 4], dtype=torch.int32)
STARTS = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
TOKENS = sum(LENGTHS)
PADDING = slice(int(STARTS[4]), int(STARTS[5]))
HF_UPDATE: Callable[..., torch.Tensor] = (
    getattr(qwen3_next, "torch_causal_conv1d_update", None) or qwen3_next.causal_conv1d_update
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def hooks() -> Iterator[None]:
    patches = [*gated_norm.PATCHES, *shared_expert_gate.PATCHES]
    with switched([patch for patch in patches if patch.has_target], on=True):
        yield


def requests() -> list[tuple[int, int, slice]]:
    """Row, slot and tokens of the ragged batch's requests that are no padding and have tokens."""
    bounds = [slice(start, end) for start, end in pairwise(STARTS.tolist())]
    rows = enumerate(zip(SLOTS.tolist(), bounds, strict=True))
    return [(row, slot, tokens) for row, (slot, tokens) in rows if slot >= 0 and tokens.stop > tokens.start]


def by_group(heads: torch.Tensor) -> torch.Tensor:
    """Key heads as Hugging Face's rule wants them: one for each value head."""
    return heads.repeat_interleave(VALUE_HEADS // KEY_HEADS, dim=-2)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("pool_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_prompts_are_convolved(with_bias: bool, pool_dtype: torch.dtype) -> None:
    """Two requests start from nothing, whatever their slots hold; the others go on from theirs."""
    x, weight = torch.randn(CHANNELS, TOKENS), torch.randn(CHANNELS, WIDTH)
    bias = torch.randn(CHANNELS) if with_bias else None
    pool = torch.randn(8, CHANNELS, WIDTH - 1).to(pool_dtype)
    pool[2] = float("nan")
    goes_on = torch.tensor([True, False, True, True, True, False])
    expected, states = torch.zeros_like(x), pool.clone()
    for row, slot, tokens in requests():
        state = states[slot, None].float() if goes_on[row] else torch.zeros(1, CHANNELS, WIDTH - 1)
        expected[:, tokens] = HF_UPDATE(x[None, :, tokens], state, weight, bias, "silu")[0]
        states[slot] = state[0].to(pool_dtype)
    found = gdn.causal_conv1d_fn_cpu(
        x,
        weight,
        bias,
        activation="silu",
        conv_states=pool,
        has_initial_state=goes_on,
        cache_indices=SLOTS,
        query_start_loc=STARTS,
        seq_lens_cpu=LENGTHS,
    )
    close(found, expected)
    assert not found[:, PADDING].any()
    assert torch.equal(pool, states)


@pytest.mark.parametrize("pool_dtype", [torch.float32, torch.bfloat16])
def test_one_more_token_is_convolved(pool_dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(len(SLOTS), CHANNELS), torch.randn(CHANNELS, WIDTH), torch.randn(CHANNELS)
    pool = torch.randn(8, CHANNELS, WIDTH - 1).to(pool_dtype)
    expected, states = torch.zeros_like(x), pool.clone()
    for row, slot in enumerate(SLOTS.tolist()):
        if slot >= 0:
            state = states[slot, None].float()
            expected[row] = HF_UPDATE(x[row, None, :, None], state, weight, bias, "silu")[0, :, 0]
            states[slot] = state[0].to(pool_dtype)
    found = gdn.causal_conv1d_update_cpu(x, pool, weight, bias, "silu", conv_state_indices=SLOTS)
    close(found, expected)
    assert torch.equal(pool, states)


def test_without_an_activation_the_convolution_is_plain() -> None:
    x, weight = torch.randn(1, CHANNELS), torch.randn(CHANNELS, WIDTH)
    pool = torch.randn(1, CHANNELS, WIDTH - 1)
    expected = (torch.cat((pool[0], x.T), dim=1) * weight).sum(1)
    found = gdn.causal_conv1d_update_cpu(x, pool, weight, None, None, conv_state_indices=torch.tensor([0]))
    close(found[0], expected)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("pool_dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_prompts_pass_the_gated_delta_rule(pool_dtype: torch.dtype, tolerance: float, normalize: bool) -> None:
    """Every request goes on from the memory in its slot, which is held the other way round than Hugging Face's."""
    q, k = (torch.randn(1, TOKENS, KEY_HEADS, KEY_DIM) / KEY_DIM**0.5 for _ in range(2))
    v = torch.randn(1, TOKENS, VALUE_HEADS, VALUE_DIM)
    g, beta = -torch.rand(1, TOKENS, VALUE_HEADS), torch.rand(1, TOKENS, VALUE_HEADS)
    pool = torch.randn(8, VALUE_HEADS, VALUE_DIM, KEY_DIM).to(pool_dtype)
    expected, states = torch.zeros_like(v), pool.clone()
    for _, slot, tokens in requests():
        expected[:, tokens], state = qwen3_next.torch_chunk_gated_delta_rule(
            by_group(q[:, tokens]),
            by_group(k[:, tokens]),
            v[:, tokens],
            g=g[:, tokens],
            beta=beta[:, tokens],
            initial_state=states[slot, None].mT.float(),
            output_final_state=True,
            use_qk_l2norm_in_kernel=normalize,
        )
        states[slot] = state[0].mT.to(pool_dtype)
    found, _, _ = gdn.chunk_gated_delta_rule_cpu(
        q,
        k,
        v,
        g,
        beta,
        initial_state=pool,
        initial_state_indices=SLOTS,
        cu_seqlens=STARTS,
        head_first=False,
        use_qk_l2norm_in_kernel=normalize,
    )
    close(found, expected)
    assert not found[:, PADDING].any()
    close(pool, states, tolerance)


def test_a_decode_step_passes_the_gated_delta_rule() -> None:
    rows = len(SLOTS)
    q, k = (torch.randn(1, rows, KEY_HEADS, KEY_DIM) for _ in range(2))
    v = torch.randn(1, rows, VALUE_HEADS, VALUE_DIM)
    a, b = (torch.randn(rows, VALUE_HEADS) for _ in range(2))
    a_log, dt_bias = torch.rand(VALUE_HEADS), torch.randn(VALUE_HEADS)
    pool = torch.randn(8, VALUE_HEADS, VALUE_DIM, KEY_DIM)
    g = -a_log.exp() * torch.nn.functional.softplus(a + dt_bias)
    served = SLOTS >= 0
    slots = SLOTS[served].long()
    expected, states = torch.zeros_like(v), pool.clone()
    outputs, latest = qwen3_next.torch_recurrent_gated_delta_rule(
        by_group(q[0, served, None]),
        by_group(k[0, served, None]),
        v[0, served, None],
        g=g[served, None],
        beta=b[served, None].sigmoid(),
        initial_state=pool[slots].mT,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    expected[0, served], states[slots] = outputs[:, 0], latest.mT
    found = gdn.fused_sigmoid_gating_delta_rule_update_cpu(
        A_log=a_log,
        dt_bias=dt_bias,
        q=q,
        k=k,
        v=v,
        a=a,
        b=b,
        initial_state_source=pool,
        initial_state_indices=SLOTS,
        cu_seqlens=torch.arange(rows + 1, dtype=torch.int32),
        use_qk_l2norm_in_kernel=True,
        softplus_beta=1.0,
        softplus_threshold=20.0,
    )
    close(found, expected)
    close(pool, states)


def make_layer() -> Any:
    config = qwen3_5.Qwen3_5TextConfig(
        hidden_size=32,
        num_hidden_layers=4,
        linear_conv_kernel_dim=WIDTH,
        linear_key_head_dim=KEY_DIM,
        linear_value_head_dim=VALUE_DIM,
        linear_num_key_heads=KEY_HEADS,
        linear_num_value_heads=VALUE_HEADS,
    )
    layer = qwen3_5.Qwen3_5GatedDeltaNet(config, 0)
    layer.dt_bias.data.normal_()
    layer.norm.weight.data.normal_()
    return layer


class ServedLayer:
    """A layer of Hugging Face's, computed by the stand-ins in the order of SGLang's calls; its slot is 1 of 2."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.weight = layer.conv1d.weight[:, 0]
        self.windows = torch.zeros(2, CHANNELS, WIDTH - 1)
        self.memories = torch.zeros(2, VALUE_HEADS, VALUE_DIM, KEY_DIM)
        self.slots = torch.tensor([1])

    def __call__(self, hidden: torch.Tensor, *, decodes: bool) -> torch.Tensor:
        """``hidden``: [T, 32], the request's next tokens."""
        layer = self.layer
        qkvz = torch.cat((layer.in_proj_qkv(hidden), layer.in_proj_z(hidden)), dim=1)
        ba = torch.cat((layer.in_proj_b(hidden), layer.in_proj_a(hidden)), dim=1)
        qkv, z, b, a = gdn.fused_qkvzba_split_reshape_cat_contiguous_cpu(
            qkvz, ba, KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM
        )
        assert all(part.is_contiguous() for part in (qkv, z, b, a))
        attend = self.decode if decodes else self.prefill
        return layer.out_proj(layer.norm(attend(qkv, a, b)[0], z).flatten(1))

    def split(self, qkv: torch.Tensor) -> dict[str, torch.Tensor]:
        keys = KEY_HEADS * KEY_DIM
        q, k, v = qkv.split((keys, keys, VALUE_HEADS * VALUE_DIM), dim=1)
        q, k = (part.reshape(1, -1, KEY_HEADS, KEY_DIM) for part in (q, k))
        return {"q": q, "k": k, "v": v.reshape(1, -1, VALUE_HEADS, VALUE_DIM)}

    def prefill(self, qkv: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        starts = torch.tensor([0, len(qkv)])
        mixed = gdn.causal_conv1d_fn_cpu(
            qkv.T,
            self.weight,
            None,
            activation="silu",
            conv_states=self.windows,
            has_initial_state=torch.tensor([False]),
            cache_indices=self.slots,
            query_start_loc=starts,
            seq_lens_cpu=[len(qkv)],
        )
        g, beta = gdn.fused_gdn_gating_cpu(self.layer.A_log, a, b, self.layer.dt_bias)
        return gdn.chunk_gated_delta_rule_cpu(
            **self.split(mixed.T),
            g=g,
            beta=beta,
            initial_state=self.memories,
            initial_state_indices=self.slots,
            cu_seqlens=starts,
            head_first=False,
            use_qk_l2norm_in_kernel=True,
        )[0]

    def decode(self, qkv: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        mixed = gdn.causal_conv1d_update_cpu(
            qkv, self.windows, self.weight, None, "silu", conv_state_indices=self.slots
        )
        return gdn.fused_sigmoid_gating_delta_rule_update_cpu(
            A_log=self.layer.A_log,
            dt_bias=self.layer.dt_bias,
            **self.split(mixed),
            a=a,
            b=b,
            initial_state_source=self.memories,
            initial_state_indices=self.slots,
            cu_seqlens=torch.tensor([0, 1]),
            use_qk_l2norm_in_kernel=True,
            softplus_beta=1.0,
            softplus_threshold=20.0,
        )


@torch.no_grad()
def test_a_whole_layer_is_hugging_faces() -> None:
    """A prompt and three tokens more, against all of them at once."""
    layer = make_layer()
    served = ServedLayer(layer)
    hidden = torch.randn(40, 32)
    found = [served(hidden[:37], decodes=False), *(served(token[None], decodes=True) for token in hidden[37:])]
    close(torch.cat(found), layer(hidden[None])[0])
    assert not served.windows[0].any()
    assert not served.memories[0].any()


def test_gates_keep_their_dtypes() -> None:
    a, b = torch.randn(3, VALUE_HEADS).bfloat16(), torch.randn(3, VALUE_HEADS).bfloat16()
    g, beta = gdn.fused_gdn_gating_cpu(torch.rand(VALUE_HEADS), a, b, torch.rand(VALUE_HEADS))
    assert (g.dtype, beta.dtype, g.shape, beta.shape) == (torch.float32, torch.bfloat16, (1, *a.shape), (1, *b.shape))


def gemma_norm(dim: int) -> Any:
    norm = qwen3_5.Qwen3_5RMSNorm(dim, eps=1e-3)
    norm.weight.data.normal_()
    return norm


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_and_keys_are_normed_by_head(dtype: torch.dtype) -> None:
    """Out of one tensor of all projections, as SGLang hands them over, without and with the gates in it."""
    q_norm, k_norm = gemma_norm(KEY_DIM), gemma_norm(KEY_DIM)
    q, k = torch.randn(3, 5 * 2 * KEY_DIM).to(dtype).split((4 * 2 * KEY_DIM, 2 * KEY_DIM), dim=1)
    expected_k = k_norm(k.reshape(-1, KEY_DIM))
    weights = q_norm.weight, k_norm.weight, 1e-3, KEY_DIM
    found = gdn.fused_qk_gemma_rmsnorm_cpu(q, k, *weights)
    for normed, expected in zip(found, (q_norm(q.reshape(-1, KEY_DIM)), expected_k), strict=True):
        assert torch.equal(normed, expected)
    found_with_gate = gdn.fused_qk_gemma_rmsnorm_with_gate_cpu(q, k, *weights, 4)
    query, gate = q.reshape(-1, 2 * KEY_DIM).chunk(2, dim=-1)
    for part, expected in zip(found_with_gate, (q_norm(query), expected_k, gate), strict=True):
        assert torch.equal(part, expected)
        assert part.view(3, -1).is_contiguous()


def test_attention_is_gated_in_place_unless_told_otherwise() -> None:
    x, gates = torch.randn(3, 4 * KEY_DIM), torch.randn(3, 4, 2 * KEY_DIM)[..., KEY_DIM:]
    expected = x * torch.sigmoid(gates.flatten(1))
    before = x.clone()
    assert torch.equal(gdn.fused_sigmoid_mul_cpu(x, gates, inplace=False), expected)
    assert torch.equal(x, before)
    assert gdn.fused_sigmoid_mul_cpu(x, gates) is x
    assert torch.equal(x, expected)


@torch.no_grad()
@pytest.mark.usefixtures("hooks")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_gated_norms_need_no_triton(dtype: torch.dtype, tolerance: float) -> None:
    """The layers that SGLang has for Qwen3-Next and for Qwen3.5."""
    from sglang.kernels.ops.attention.fla.fused_norm_gate import FusedRMSNormGated
    from sglang.kernels.ops.attention.fla.layernorm_gated import RMSNorm

    x, gate, weight = (torch.randn(*shape).to(dtype) for shape in ((6, VALUE_DIM), (6, VALUE_DIM), (VALUE_DIM,)))
    layers = [
        (FusedRMSNormGated(VALUE_DIM, eps=1e-3, activation="silu"), qwen3_next.Qwen3NextRMSNormGated),
        (RMSNorm(VALUE_DIM, eps=1e-3), qwen3_5.Qwen3_5RMSNormGated),
    ]
    for layer, definition in layers:
        expected = definition(VALUE_DIM, eps=1e-3)
        layer.weight.data = expected.weight.data = weight
        found = layer(x, gate)
        assert found.dtype == dtype
        close(found, expected(x, gate), tolerance)
    layer = FusedRMSNormGated(VALUE_DIM, eps=1e-3, activation="sigmoid")
    layer.weight.data = weight
    plain = torch.nn.functional.rms_norm(x.float(), (VALUE_DIM,), weight.float(), 1e-3)
    close(layer(x, gate), (plain * gate.float().sigmoid()).to(dtype), tolerance)


def test_norms_of_other_layers_are_sglangs() -> None:
    calls: list[tuple[Any, ...]] = []
    x = torch.randn(2, 4)
    others = [{"bias": x}, {"bias": None, "residual": x}, {"bias": None, "prenorm": True}]
    for other in others:
        gated_norm.rms_norm_gated(lambda *args: calls.append(args), x, x, x[0], **other)
    asked: dict[str, Any] = {"z": x, "bias": None, "is_rms_norm": True}
    for change in ({"z": None}, {"bias": x}, {"is_rms_norm": False}, {"group_size": 2}, {"norm_before_gate": False}):
        gated_norm.layernorm_fn(lambda *args: calls.append(args), x, x[0], **(asked | change))
    assert len(calls) == 8
    assert calls[1][5] is x
    assert calls[2][6] is True
    assert calls[6][5] == 2


@torch.no_grad()
@pytest.mark.usefixtures("hooks")
def test_the_shared_expert_is_added_without_triton() -> None:
    """To what the other experts of Hugging Face's block bring, under the name by which SGLang's models call it."""
    from sglang.srt.models import qwen2_moe

    config = qwen3_next.Qwen3NextConfig(
        hidden_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    )
    block = qwen3_next.Qwen3NextSparseMoeBlock(config)
    for parameter in block.parameters():
        parameter.normal_()
    hidden = torch.randn(5, 16)
    expected = block(hidden[None])[0]
    shared = block.shared_expert(hidden)
    block.shared_expert.down_proj.weight.zero_()
    total = block(hidden[None])[0]
    assert not torch.allclose(total, expected)
    qwen2_moe.fused_gate_sigmoid_mul_add(hidden, block.shared_expert_gate.weight.squeeze(), shared, total)
    close(total, expected)


def test_one_place_of_the_shared_experts_gate_is_this_releases() -> None:
    assert sum(patch.has_target for patch in shared_expert_gate.PATCHES) == 1


@pytest.mark.skipif(cpu_host.gpu_device() is not None, reason="the stand-ins are never active on a GPU machine")
class TestNames:
    def test_the_modules_that_need_the_ops_find_them(self) -> None:
        from sglang.srt.layers.attention.linear import gdn_backend
        from sglang.srt.layers.attention.linear.kernels import gdn_triton
        from sglang.srt.models import qwen3_5 as model

        assert gdn_backend.causal_conv1d_fn is gdn.causal_conv1d_fn_cpu
        assert gdn_backend.causal_conv1d_update is gdn.causal_conv1d_update_cpu
        assert gdn_backend.fused_gdn_gating is gdn.fused_gdn_gating_cpu
        assert gdn_triton.chunk_gated_delta_rule is gdn.chunk_gated_delta_rule_cpu
        assert model.fused_qk_gemma_rmsnorm is gdn.fused_qk_gemma_rmsnorm_cpu

    def test_other_kernels_of_the_submodule_refuse_by_name(self) -> None:
        from sgl_kernel import mamba

        with pytest.raises(NotImplementedError, match=r"sgl_kernel\.mamba\.other_cpu has no CPU stand-in"):
            mamba.other_cpu()
        with pytest.raises(ImportError):
            from sgl_kernel.mamba import causal_conv1d_fwd  # noqa: F401

    def test_a_process_that_does_not_import_sgl_kernel_pays_nothing(self) -> None:
        code = "import sys, lim_cpu_host; assert lim_cpu_host.is_active(); print('torch' in sys.modules)"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
        assert found.stdout.strip() == "False", found.stderr
