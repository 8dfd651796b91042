"""The CPU backend on SGLang's own pools and layers, against attention written out token by token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lim_kernels.select.reference import head_scores, select_token_set
from lim_sglang.config import LimConfig
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.metrics import DecodeMetrics

HEADS, KV_HEADS, HEAD_DIM, LAYERS, POOL = 6, 2, 16, 5, 400
PLAN = LayerPlan.from_select_layers(LAYERS, (1, 3))  # dense, select, sparse, select, sparse
BUDGET, SINKS, RECENT = 20, 2, 3  # 15 selected
CONFIG = LimConfig(budget=BUDGET, sink_tokens=SINKS, recency_ratio=0.25, select_layers=(1, 3))


class Step:
    """One decode step of a ragged batch: real pools with random contents, slots in random order."""

    def __init__(self, seq_lens: list[int], seed: int = 0) -> None:
        from sglang.srt.layers.radix_attention import RadixAttention
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        from lim_sglang.attention.torch_native import LimTorchNativeBackend

        self.generator = torch.Generator().manual_seed(seed)
        self.seq_lens = seq_lens
        self.rows = ReqToTokenPool(8, 128, "cpu", False)
        self.pool = MHATokenToKVPool(POOL, 1, torch.float32, KV_HEADS, HEAD_DIM, LAYERS, "cpu", False)
        self.layers = [RadixAttention(HEADS, HEAD_DIM, HEAD_DIM**-0.5, KV_HEADS, i) for i in range(LAYERS)]
        for layer in range(LAYERS):
            for buffer in (self.pool.get_key_buffer(layer), self.pool.get_value_buffer(layer)):
                buffer.copy_(self.randn(*buffer.shape))
        slots = torch.randperm(POOL - 1, generator=self.generator) + 1
        self.rows.req_to_token.fill_(-1_000_000)  # a slot outside the pool, wherever no request wrote
        self.request_rows = torch.tensor([5, 2, 7, 1][: len(seq_lens)])
        self.slots = list(slots[: sum(seq_lens)].split(seq_lens))
        for row, own in zip(self.request_rows, self.slots, strict=True):
            self.rows.req_to_token[row, : len(own)] = own.int()
        runner = SimpleNamespace(device="cpu", req_to_token_pool=self.rows, token_to_kv_pool=self.pool)
        self.metrics = DecodeMetrics(CONFIG, PLAN)
        self.backend = LimTorchNativeBackend(runner, CONFIG, PLAN, self.metrics)
        self.batch = SimpleNamespace(
            forward_mode=ForwardMode.DECODE,
            batch_size=len(seq_lens),
            seq_lens=torch.tensor(seq_lens),
            req_pool_indices=self.request_rows,
            out_cache_loc=torch.stack([own[-1] for own in self.slots]),
            encoder_lens=None,
            encoder_out_cache_loc=None,
        )
        self.inputs = [self.randn(3, len(seq_lens), HEADS * HEAD_DIM) for _ in range(LAYERS)]

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def qkv(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.inputs[layer]
        heads = (len(self.seq_lens), KV_HEADS, HEAD_DIM)
        width = KV_HEADS * HEAD_DIM
        return q, k[:, :width].reshape(heads), v[:, :width].reshape(heads)

    def decode(self, layer: int) -> Tensor:
        q, k, v = self.qkv(layer)
        return self.backend.forward_decode(q, k, v, self.layers[layer], self.batch)

    def expected(self, layer: int, request: int, positions: list[int]) -> Tensor:
        """[H, D] attention of one request over ``positions``, one head and token after the other, in float64."""
        q, k, v = (t.double() for t in self.qkv(layer))
        keys, values = (
            buffer[self.slots[request]].double().clone()
            for buffer in (self.pool.get_key_buffer(layer), self.pool.get_value_buffer(layer))
        )
        keys[-1], values[-1] = k[request], v[request]
        output = torch.empty(HEADS, HEAD_DIM, dtype=torch.float64)
        for head in range(HEADS):
            kv_head = head // (HEADS // KV_HEADS)
            query = q[request].view(HEADS, HEAD_DIM)[head]
            weights = torch.stack([query @ keys[t, kv_head] for t in positions]).div(HEAD_DIM**0.5).softmax(0)
            output[head] = sum(w * values[t, kv_head] for w, t in zip(weights, positions, strict=True))
        return output

    def token_set(self, layer: int, request: int) -> list[int]:
        """The set that the reference chooses by ``layer``'s queries."""
        q, k, _ = self.qkv(layer)
        keys = self.pool.get_key_buffer(layer)[self.slots[request]].clone()
        keys[-1] = k[request]
        scores = head_scores(q[request].view(HEADS, HEAD_DIM), keys)
        chosen = select_token_set(scores[None], torch.tensor([len(keys)]), CONFIG.parts)
        return chosen.positions[0, : int(chosen.lengths[0])].tolist()


@pytest.mark.parametrize(
    "seq_lens",
    [[1], [BUDGET], [BUDGET + 1], [111], [5, 20, 21, 100], [19, 63]],
    ids=lambda lens: "-".join(map(str, lens)),
)
def test_every_layer_attends_to_what_its_role_says(seq_lens: list[int]) -> None:
    step = Step(seq_lens)
    step.backend.init_forward_metadata(step.batch)
    for layer in range(LAYERS):
        output = step.decode(layer)
        for request, n in enumerate(seq_lens):
            chooser = {2: 1, 4: 3}.get(layer)
            positions = list(range(n)) if chooser is None else step.token_set(chooser, request)
            expected = step.expected(layer, request, positions).flatten()
            torch.testing.assert_close(output[request].double(), expected, rtol=0, atol=2e-6)


def test_no_set_survives_a_step() -> None:
    step = Step([100])
    step.backend.init_forward_metadata(step.batch)
    for layer in range(LAYERS):
        step.decode(layer)
    step.backend.init_forward_metadata(step.batch)
    with pytest.raises(RuntimeError, match="layer 2 is sparse, but no layer before it selected"):
        step.decode(2)


def test_steps_and_mixed_rows_are_counted() -> None:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    step = Step([100, 7])
    step.backend.init_forward_metadata(step.batch)
    step.batch.forward_mode = ForwardMode.MIXED
    step.batch.extend_seq_lens = torch.tensor([64, 1])
    step.batch.extend_prefix_lens = torch.tensor([0, 6])
    step.backend.init_forward_metadata(step.batch)
    counters: dict[str, Any] = step.metrics.report()["counters"]
    assert counters["attended_tokens"] == {"dense": 107, "select": 214, "sparse": 2 * (BUDGET + 7)}
    assert counters["dense_rows_in_extend"] == 1


def test_rows_that_fill_up_a_batch_are_no_requests() -> None:
    """DP attention asks for their length, SGLang 0.5.23 by another name on a CPU."""
    backend = Step([30]).backend
    length = backend.get_cuda_graph_seq_len_fill_value()
    assert backend.get_cpu_graph_seq_len_fill_value() == length
    step = Step([30, length, 8, length])
    step.backend.init_forward_metadata(step.batch)
    assert step.metrics.report()["counters"]["decode_rows"] == 2
