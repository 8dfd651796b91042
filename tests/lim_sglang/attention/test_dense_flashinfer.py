"""The GPU backend of verifications on the host: whose metadata a step gets, and its attention, interpreted.

SGLang's own backend runs beneath; only its constructor and FlashInfer, which need a GPU, are stand-ins.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from lim_kernels.attend.reference import verify_attention

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted kernels; a GPU serves in tests/e2e")

HEADS, KV_HEADS, HEAD_DIM, WIDTH = 8, 2, 16, 5
MAX_BATCH, CONTEXT, SLOTS = 4, 64, 400


class Updater:
    num_qo_heads, num_kv_heads, head_dim = HEADS, KV_HEADS, HEAD_DIM
    q_data_type = data_type = torch.float32


def construct() -> dict[str, Any]:
    table = torch.randperm(SLOTS, dtype=torch.int32)[: 4 * 80].view(4, 80)
    return {
        "max_context_len": CONTEXT,
        "kv_last_page_len": torch.ones(MAX_BATCH, dtype=torch.int32),
        "indices_updater_decode": Updater(),
        "req_to_token_pool": SimpleNamespace(req_to_token=table),
    }


@pytest.fixture
def backend(load: Callable[..., Any]) -> Any:
    module = load("dense_flashinfer", construct)
    return module.DenseFlashInferBackend(SimpleNamespace(init_new_workspace=False), WIDTH)


def batch_of(mode: str, prefixes: list[int], rows: list[int]) -> Any:
    return SimpleNamespace(
        forward_mode=ForwardMode[mode], seq_lens=torch.tensor(prefixes), req_pool_indices=torch.tensor(rows)
    )


@pytest.mark.parametrize("captured", [False, True])
def test_every_verification_reads_every_key_of_its_requests(backend: Any, captured: bool) -> None:
    verify(backend, [7, 22], [1, 3], captured)
    verify(backend, [40, 0, 13], [2, 0, 3], captured)


def verify(backend: Any, prefixes: list[int], rows: list[int], captured: bool) -> None:
    """Prepare a verification and attend in it, by capped logits."""
    step = batch_of("TARGET_VERIFY", prefixes, rows)
    if captured:
        backend.init_forward_metadata_out_graph(step, in_capture=True)
        backend.init_forward_metadata_in_graph(step)
    else:
        backend.init_forward_metadata(step)
    [wrapper] = backend.forward_metadata.prefill_wrappers
    assert not backend.forward_metadata.use_ragged, "the paged path, which writes K and V first"
    torch.manual_seed(0)
    q = torch.randn(len(prefixes) * WIDTH, HEADS, HEAD_DIM)
    keys, values = torch.randn(2, SLOTS, KV_HEADS, HEAD_DIM)
    scales = {"sm_scale": 0.25, "logits_soft_cap": 0.3, "k_scale": 0.5, "v_scale": 2.0}
    found = wrapper.forward(q, (keys, values), causal=True, window_left=-1, **scales)
    table = backend.req_to_token_pool.req_to_token
    q_by_request = q.unflatten(0, (len(prefixes), WIDTH))
    requests = table, torch.tensor(rows), torch.tensor(prefixes)
    expected = verify_attention(q_by_request, keys, values, *requests, 0.125, 0.3)
    torch.testing.assert_close(found, 2 * expected.flatten(0, 1), rtol=0, atol=1e-5)


def test_slots_are_listed_in_the_graph(backend: Any) -> None:
    """A replay repeats what is in the graph only, with the lengths that are there by then."""
    step = batch_of("TARGET_VERIFY", [3, 9], [1, 2])
    backend.init_forward_metadata_out_graph(step, in_capture=True)
    assert not backend.verify.kv_indptr.any()
    backend.init_forward_metadata_in_graph(step)
    assert backend.verify.kv_indptr.tolist() == [0, 3 + WIDTH, 3 + 9 + 2 * WIDTH, 0, 0]


def test_the_largest_batch_of_the_longest_requests_fits(backend: Any) -> None:
    backend.req_to_token_pool.req_to_token = torch.zeros(4, CONTEXT + WIDTH, dtype=torch.int32)
    backend.init_forward_metadata(batch_of("TARGET_VERIFY", [CONTEXT] * MAX_BATCH, [0, 1, 2, 3]))
    [wrapper] = backend.forward_metadata.prefill_wrappers
    assert int(wrapper.kv_indptr[-1]) == len(wrapper.kv_indices) == MAX_BATCH * (CONTEXT + WIDTH)
    q = torch.ones(MAX_BATCH * WIDTH, HEADS, HEAD_DIM)
    assert wrapper.forward(q, (q[:, :KV_HEADS], q[:, :KV_HEADS]), sm_scale=1.0).eq(1).all()


@pytest.mark.parametrize("mode", ["DECODE", "EXTEND"])
def test_other_steps_are_sglangs(backend: Any, host: Any, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    seen: list[str] = []
    for name in ("init_forward_metadata", "init_forward_metadata_out_graph"):
        monkeypatch.setattr(host.FlashInferAttnBackend, name, lambda *_, name=name: seen.append(name))
    step = batch_of(mode, [3], [1])
    backend.init_forward_metadata(step)
    backend.init_forward_metadata_out_graph(step, in_capture=True)
    backend.init_forward_metadata_in_graph(step)
    assert seen == ["init_forward_metadata", "init_forward_metadata_out_graph"]
    assert not backend.verify.kv_indptr.any()


def test_only_decode_graphs_need_flashinfers_buffers(backend: Any, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of verifications are captured first, and theirs are not to be dropped or made larger by it."""
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(
        host.FlashInferAttnBackend, "init_cuda_graph_state", lambda _self, *sizes: made.append(sizes[:2])
    )
    backend.init_cuda_graph_state(16, 16 * WIDTH)
    assert made == []
    backend.init_cuda_graph_state(16, 16)
    assert made == [(16, 16)]
