"""The GPU backend's work on the host: which wrapper attends in which layer of which batch, and what is counted.

SGLang's own backend runs beneath; only FlashInfer and the planning of its wrappers, which need a GPU, are stand-ins.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lim_kernels.gpu import Gpu
from lim_sglang.config import LimConfig
from lim_sglang.host import loaded
from lim_sglang.host.refusals import UnsupportedError
from lim_sglang.layer_plan import LayerPlan, LayerRole
from lim_sglang.metrics import DecodeMetrics

from .recording_wrapper import RecordingWrapper

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted kernels; a GPU serves in tests/e2e")

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 32, 16, 16, 5
CONFIG = LimConfig(budget=20, sink_tokens=2, select_layers=(1, 3))
PLAN = LayerPlan.from_select_layers(LAYERS, (1, 3))  # dense, select, sparse, select, sparse
MAX_BATCH, CONTEXT = 12, 64
LAST_SPLIT_KV_BATCH = 8  # of 16 KV heads each: 128, where the split-KV kernel ends


class DenseWrapper:
    """FlashInfer's wrapper as SGLang has planned it: every request's slots."""

    def __init__(self) -> None:
        self._paged_kv_indptr_buf = torch.zeros(MAX_BATCH + 1, dtype=torch.int32)
        self._paged_kv_indices_buf = torch.arange(MAX_BATCH * CONTEXT, dtype=torch.int32)


class Updater:
    """SGLang's index updater: it plans wrappers for the lengths of a step."""

    num_qo_heads, num_kv_heads, head_dim = HEADS, KV_HEADS, HEAD_DIM
    q_data_type = data_type = torch.float32

    def update(self, *args: Any, decode_wrappers: list[DenseWrapper] | None = None, **options: Any) -> None:
        lengths = next(arg for arg in args if isinstance(arg, torch.Tensor) and arg.dtype == torch.int32)
        for wrapper in decode_wrappers or ():
            wrapper._paged_kv_indptr_buf[1 : len(lengths) + 1] = lengths.cumsum(0)


def construct() -> dict[str, Any]:
    return {
        "max_context_len": CONTEXT,
        "kv_last_page_len": torch.ones(MAX_BATCH, dtype=torch.int32),
        "workspace_buffer": torch.zeros(16, dtype=torch.uint8),
        **dict.fromkeys(("indices_updater_decode", "indices_updater_prefill"), Updater()),
        "decode_wrappers": [DenseWrapper()],
        "prefill_wrappers_paged": [DenseWrapper()],
        "decode_cuda_graph_metadata": {},
        "decode_backend": "fa2",
        "decode_use_tensor_cores": False,
        "num_wrappers": 1,
        "kv_indptr": [torch.zeros(MAX_BATCH + 1)],
        "cuda_graph_kv_indices": [torch.zeros(MAX_BATCH * CONTEXT)],
        "_create_decode_wrappers": lambda *_: [DenseWrapper()],
        "_prepare_dequant_workspace_metadata_for_extend": lambda *_: None,
    }


@pytest.fixture
def make(load: Callable[..., Any]) -> Callable[..., Any]:
    """Makes lim's backend on SGLang's, whose constructor is the only part of it that is left out."""
    module = load("flashinfer", construct)

    def make(algorithm: str | None = None) -> Any:
        runner = SimpleNamespace(init_new_workspace=False, server_args=SimpleNamespace(speculative_algorithm=algorithm))
        return module.LimFlashInferBackend(runner, CONFIG, PLAN, DecodeMetrics(CONFIG, PLAN))

    return make


@pytest.fixture
def backend(make: Callable[..., Any]) -> Any:
    return make()


def batch_of(mode: str, seq_lens: list[int], rows: int | None = None, **more: Any) -> Any:
    """SGLang's batch, or its view in a replay; ``seq_lens`` may be padded beyond ``rows`` requests."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    lengths = torch.tensor(seq_lens, dtype=torch.int32)
    fields: dict[str, Any] = dict.fromkeys(
        ["encoder_lens", "spec_info", "out_cache_loc", "kv_loc_plan", "cross_attention_custom_mask"]
    )
    fields |= {
        "forward_mode": ForwardMode[mode],
        "batch_size": len(seq_lens) if rows is None else rows,
        "seq_lens": lengths,
        "seq_lens_cpu": lengths,
        "seq_lens_sum": int(lengths.sum()),
        "req_pool_indices": torch.arange(len(seq_lens)),
        "positions": lengths - 1,
    }
    return SimpleNamespace(**fields | more)


def extend_batch(mode: str, cached: list[int], new: list[int]) -> Any:
    return batch_of(
        mode,
        [old + more for old, more in zip(cached, new, strict=True)],
        extend_prefix_lens=torch.tensor(cached),
        extend_prefix_lens_cpu=cached,
        extend_seq_lens_cpu=new,
    )


def wrappers_by_layer(backend: Any) -> list[Any]:
    """The wrapper that SGLang's ``forward_decode`` would take in every layer of the step."""
    wrappers = backend.forward_metadata.decode_wrappers
    return [wrappers[backend._get_wrapper_idx(SimpleNamespace(layer_id=layer))] for layer in range(LAYERS)]


def step(backend: Any, seq_lens: list[int], for_graph: bool) -> None:
    """A decode step, without a graph or as one is captured."""
    if for_graph:
        backend.init_forward_metadata_out_graph(batch_of("DECODE", seq_lens), in_capture=True)
    else:
        backend.init_forward_metadata(batch_of("DECODE", seq_lens))


@pytest.mark.parametrize("for_graph", [False, True], ids=["eager", "captured"])
@pytest.mark.parametrize(
    ("batch", "split_kv"),
    [(1, True), (LAST_SPLIT_KV_BATCH, True), (LAST_SPLIT_KV_BATCH + 1, False), (MAX_BATCH, False)],
)
def test_wrappers_by_layer_and_batch(backend: Any, wrappers: Any, batch: int, split_kv: bool, for_graph: bool) -> None:
    step(backend, [30] * batch, for_graph)
    found = wrappers_by_layer(backend)
    for layer, wrapper in enumerate(found):
        role = PLAN.role(layer)
        expected = {
            LayerRole.DENSE: DenseWrapper,
            LayerRole.SELECT: wrappers.SelectWrapper,
            LayerRole.SPARSE: wrappers.SplitKVWrapper if split_kv else RecordingWrapper,
        }[role]
        assert type(wrapper) is expected, f"layer {layer} is {role.name}"
    dense = backend.decode_cuda_graph_metadata[batch] if for_graph else backend.decode_wrappers
    assert found[0] is dense[0]
    assert found[1].dense is dense[0], "selection reads the slots of this step's own list"
    assert len(dense) == 1, "SGLang plans every wrapper of its own list"


@pytest.mark.parametrize("for_graph", [False, True], ids=["eager", "captured"])
def test_flashinfers_plan_is_that_of_the_batch(backend: Any, for_graph: bool) -> None:
    for batch in (9, 12, 9):
        step(backend, [30] * batch, for_graph)
        wrapper = wrappers_by_layer(backend)[2]
        assert wrapper.options["use_cuda_graph"] is for_graph
        _, _, last_page_len, *_ = wrapper.plans[-1][0]
        assert len(last_page_len) == batch


@pytest.mark.parametrize("mode", ["EXTEND", "MIXED"])
def test_prefill_is_dense_in_every_layer(backend: Any, mode: str) -> None:
    """``forward_extend`` asks the same question, also after steps of decode."""
    step(backend, [30, 40], for_graph=False)
    backend.init_forward_metadata(extend_batch(mode, [0, 30], [25, 1]))
    backend.forward_metadata.decode_wrappers = [None] * 3  # however much it looks like a decode step
    assert [backend._get_wrapper_idx(SimpleNamespace(layer_id=layer)) for layer in range(LAYERS)] == [0] * LAYERS


def test_an_idle_step_has_the_dense_wrapper_only(backend: Any) -> None:
    backend.init_forward_metadata(batch_of("IDLE", []))
    assert wrappers_by_layer(backend) == backend.decode_wrappers * LAYERS


@pytest.mark.parametrize(("longest", "is_dense"), [(1, True), (20, True), (21, False)])
def test_a_step_without_a_graph_is_dense_within_the_budget(backend: Any, longest: int, is_dense: bool) -> None:
    step(backend, [3, longest, 2], for_graph=False)
    assert (wrappers_by_layer(backend) == backend.decode_wrappers * LAYERS) is is_dense
    assert counters(backend)[:2] == (1, 2 + (longest > 1))


def test_a_graph_selects_whatever_the_lengths_at_capture(backend: Any) -> None:
    step(backend, [1, 1], for_graph=True)
    assert len({id(wrapper) for wrapper in wrappers_by_layer(backend)}) == 3


def test_the_step_begins_with_the_sizes_of_the_sets(backend: Any) -> None:
    step(backend, [5, 20, 21, 64], for_graph=False)
    assert backend.buffers.sparse_indptr[:5].tolist() == [0, 5, 25, 45, 65]


def counters(backend: Any) -> tuple[int, int, int, int]:
    found = backend.metrics.report()["counters"]
    context = found["context_tokens"]["dense"]
    return found["decode_steps"], found["decode_rows"], context, found["dense_rows_in_extend"]


def test_replays_are_counted_and_captures_are_not(backend: Any) -> None:
    step(backend, [2, 2], for_graph=True)
    assert counters(backend) == (0, 0, 0, 0)
    for lengths in ([30, 40], [31, 41]):
        backend.init_forward_metadata_out_graph(batch_of("DECODE", lengths))
    assert counters(backend) == (2, 4, 142, 0)


def test_only_the_batchs_own_rows_are_counted(backend: Any) -> None:
    """A replay's buffers are those of the largest batch; rows of one token fill a captured batch up."""
    step(backend, [2] * 4, for_graph=True)
    backend.init_forward_metadata_out_graph(batch_of("DECODE", [30, 40, 50, 1, 99, 99], rows=4))
    assert counters(backend) == (1, 3, 120, 0)


def test_prefill_and_idle_steps_are_not_counted(backend: Any) -> None:
    backend.init_forward_metadata(extend_batch("EXTEND", [30, 0], [1, 1]))
    backend.init_forward_metadata(batch_of("IDLE", []))
    assert counters(backend) == (0, 0, 0, 0)


def test_decode_rows_of_a_mixed_batch_are_counted_apart(backend: Any) -> None:
    """A decode row is one new token behind cached ones; a prompt of one token is prefill."""
    backend.init_forward_metadata(extend_batch("MIXED", [30, 0, 12, 7], [1, 1, 5, 1]))
    assert counters(backend) == (0, 0, 0, 2)


@pytest.mark.parametrize(("algorithm", "safe"), [(None, False), ("LIM", True)])
def test_drafts_attend_by_the_kernel_that_stands_a_longer_plan(
    make: Callable[..., Any], host: Any, monkeypatch: pytest.MonkeyPatch, algorithm: str | None, safe: bool
) -> None:
    """For fewer than four query heads per KV head, as here, SGLang takes FlashInfer's other one."""
    assert not host.should_use_tensor_core(torch.bfloat16, HEADS, KV_HEADS)
    monkeypatch.setattr(host, "BatchDecodeWithPagedKVCacheWrapper", RecordingWrapper, raising=False)
    [dense] = host.FlashInferAttnBackend._create_decode_wrappers(make(algorithm), 2, 2)
    assert dense.options["use_tensor_cores"] is safe


def test_no_room_for_the_buffers_is_one_line(
    make: Callable[..., Any], wrappers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = wrappers.StepBuffers.allocate

    def full(*sizes: Any, **shard: Any) -> Any:
        if torch.device("meta") in sizes:
            return allocate(*sizes, **shard)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    monkeypatch.setattr(wrappers.StepBuffers, "allocate", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (3 << 20, 64 << 20))
    shape = wrappers.AttentionShape(HEADS, KV_HEADS, HEAD_DIM, torch.float32, torch.float32)
    wanted = allocate(MAX_BATCH, CONTEXT, CONFIG.parts, shape, torch.device("meta")).nbytes
    line = (
        f"no room for lim's buffers: {wanted >> 20} MiB for 12 requests of up to 64 tokens, and "
        f"3 MiB are free; lower --mem-fraction-static by {math.ceil(100 * wanted / (64 << 20)) / 100}, or "
        "--max-running-requests or --context-length"
    )
    with pytest.raises(UnsupportedError, match=f"^{re.escape(line)}$"):
        make()


def test_heads_that_fit_on_no_tile_are_refused(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Updater, "head_dim", 1 << 14)
    monkeypatch.setattr(loaded, "gpu_of", lambda _device: Gpu((9, 0), 232_448))
    with pytest.raises(UnsupportedError, match=r"^head size 16384 with 2 query heads per KV head: needs \d+ bytes"):
        make()
