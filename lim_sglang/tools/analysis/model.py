"""A Hugging Face causal language model whose decode steps attend to what a policy says.

Teacher-forced decode steps are independent but for the keys and values they leave behind, and within a layer those of
all steps are known before any of them attends. So one forward pass of ``Q`` tokens, each with its own mask, computes
exactly what ``Q`` decode steps of one token would.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import LinearAttentionLayer

BEYOND_PLAIN = ("softcap", "s_aux")  # what Hugging Face passes to attention that is not plain
_registrations = itertools.count()


def attending_layers(config: Any) -> tuple[int, ...]:
    """The numbers of a text model's layers that attend to all keys and values.

    The others keep a state of fixed size or have a sliding window.
    """
    windowed = window_in_effect(config) is not None
    default = "sliding_attention" if windowed else "full_attention"
    kinds = getattr(config, "layer_types", None) or [default] * int(config.num_hidden_layers)
    others = {"linear_attention", "sliding_attention"} if windowed else {"linear_attention"}
    return tuple(layer for layer, kind in enumerate(kinds) if kind not in others)


def window_in_effect(config: Any) -> int | None:
    """The sliding window, in tokens, that some layer attends within; None where every layer sees the whole context.

    A window that no layer uses is none, and so is one that is no smaller than the context.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    unused = getattr(config, "use_sliding_window", True) is False
    if not window or unused or (kinds is not None and "sliding_attention" not in kinds):
        return None
    context = getattr(config, "max_position_embeddings", None)
    return None if context is not None and window >= context else int(window)


def attend_within(window: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention of the last ``Q`` tokens, each to the ``window`` tokens that end with it.

    Query [1, H, Q, D], key and value [1, Hk, n, D] to [1, Q, H, D].
    """
    queries, keys = query.shape[2], key.shape[2]
    before = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    mask = before.triu(keys - queries - window + 1)
    output = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2).contiguous()


@dataclass(frozen=True)
class LayerView:
    """One layer's attention of ``Q`` decode steps.

    Attributes:
        layer: its number, from 0.
        queries: [Q, H, D] float32, after position encoding.
        keys, values: [n, Hk, D], those of the cached prefix and of the steps; float32.
        scores: [Q, H, n] float32, ``q . k`` without scale; step ``i`` may read positions below ``lengths[i]`` only.
        lengths: [Q] int64, tokens that a step sees, its own included.
        scale: factor of the scores before the softmax.
    """

    layer: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    scores: Tensor
    lengths: Tensor
    scale: float

    @classmethod
    def of_last(cls, layer: int, query: Tensor, key: Tensor, value: Tensor, steps: int, scale: float) -> LayerView:
        """The last ``steps`` tokens of Hugging Face's query [1, H, >= Q, D], key and value [1, Hk, n, D]."""
        queries = query[0, :, -steps:].transpose(0, 1).float()  # [Q, H, D]
        keys, values = (tensor[0].transpose(0, 1).float() for tensor in (key, value))
        grouped = queries.unflatten(1, (keys.shape[1], -1))  # [Q, Hk, H // Hk, D]
        scores = torch.einsum("qhgd,nhd->qhgn", grouped, keys).flatten(1, 2)
        lengths = torch.arange(len(keys) - steps + 1, len(keys) + 1, device=keys.device)
        return cls(layer, queries, keys, values, scores, lengths, scale)

    @property
    def causal(self) -> Tensor:
        """[Q, 1, n] bool, what each step may read."""
        return (torch.arange(self.scores.shape[2], device=self.scores.device) < self.lengths[:, None])[:, None, :]

    def weights(self, mask: Tensor) -> Tensor:
        """[Q, H, n] float32, softmax over what ``mask`` ([Q, 1 or H, n] bool) leaves."""
        return (self.scores * self.scale).masked_fill(~mask, float("-inf")).softmax(-1)

    def heads_output(self, weights: Tensor) -> Tensor:
        """[Q, H, n] attention weights to the heads' outputs [Q, H, D]."""
        grouped = weights.unflatten(1, (self.values.shape[1], -1))  # [Q, Hk, H // Hk, n]
        return torch.einsum("qhgn,nhd->qhgd", grouped, self.values).flatten(1, 2)


class Policy(Protocol):
    """Who reads what, layer by layer, in order, for one block of decode steps."""

    name: str

    def mask(self, view: LayerView) -> Tensor:
        """[Q, 1 or H, n] bool, within ``view.causal``, at least one token for every step and head."""
        ...


Observer = Callable[[LayerView, Tensor], None]
"""Called for every layer that attends to all tokens, for a block at once, with what it saw and the policy's mask."""


@dataclass(frozen=True)
class Prefix:
    """A densely prefilled prefix.

    Attributes:
        cache: its keys and values, and the states of layers that do not attend; never changed.
        length: in tokens.
        logits: [V] float32, for the token after it.
    """

    cache: DynamicCache
    length: int
    logits: Tensor

    def cut(self, length: int, logits: Tensor) -> Prefix:
        """Its first ``length`` tokens, nothing copied; ``logits`` ([V] float32) are for the token after them.

        Raises:
            ValueError: the model has layers that do not attend, and their states are those behind the last token.
        """
        if any(map(_keeps_state, self.cache.layers)):
            raise ValueError("a prefix with states of linear attention cannot be cut; prefill the shorter one")
        return Prefix(_share(self.cache, length), length, logits)


def _share(cache: DynamicCache, length: int) -> DynamicCache:
    """A cache of the first ``length`` tokens that grows by itself; only states are ever written into."""
    view = copy.copy(cache)
    view.layers = [(copy.deepcopy if _keeps_state(layer) else copy.copy)(layer) for layer in cache.layers]
    for layer in view.layers:
        if not _keeps_state(layer):
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
    return view


def _keeps_state(layer: Any) -> bool:
    """Whether a cache's layer holds a state of fixed size, in place of keys and values."""
    return isinstance(layer, LinearAttentionLayer)


class PolicyModel:
    """See the module. One block at a time; not for several threads."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.num_layers = int(model.config.num_hidden_layers)
        self._window = window_in_effect(model.config)
        self._policy: Policy | None = None
        self._observer: Observer | None = None
        name = f"lim_policy_{next(_registrations)}"
        AttentionInterface.register(name, self._attend)
        model.config._attn_implementation = name

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> PolicyModel:
        """Load a model from a folder in Hugging Face's format; nothing is downloaded."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
        return cls(model.to(device))

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int]) -> Prefix:
        """Dense attention over ``ids``, at least one token."""
        config = self.model.config
        is_hybrid = "linear_attention" in (getattr(config, "layer_types", None) or [])
        cache = DynamicCache(config=config if is_hybrid else None)  # by config, layers with a window would drop tokens
        tokens = torch.tensor([list(ids)], device=self.model.device)
        output = self.model(tokens, past_key_values=cache, logits_to_keep=1)
        return Prefix(cache, len(ids), output.logits[0, -1].float())

    @torch.inference_mode()
    def decode(
        self, prefix: Prefix, ids: Sequence[int], policy: Policy, observer: Observer | None = None
    ) -> tuple[Tensor, Prefix]:
        """Feed ``ids`` one decode step each, behind ``prefix``.

        Returns:
            [Q, V] float32 logits, those of step ``i`` for the token after ``ids[i]``; the prefix longer by ``Q``.
        """
        cache = _share(prefix.cache, prefix.length)
        self._policy, self._observer = policy, observer
        try:
            tokens = torch.tensor([list(ids)], device=self.model.device)
            logits = self.model(tokens, past_key_values=cache).logits[0].float()
        finally:
            self._policy = self._observer = None
        return logits, Prefix(cache, prefix.length + len(ids), logits[-1])

    def generate(
        self,
        prefix: Prefix,
        policy: Policy,
        pick: Callable[[Tensor], int] = lambda logits: int(logits.argmax()),
        observer: Observer | None = None,
    ) -> Iterator[int]:
        """Tokens behind ``prefix``, without end, each fed by a decode step of its own when the next one is asked for.

        Args:
            pick: chooses a token by its [V] float32 logits; the most likely one.
        """
        while True:
            token = pick(prefix.logits)
            yield token
            _, prefix = self.decode(prefix, [token], policy, observer)

    def _attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, scaling: float, **options: Any
    ) -> tuple[Tensor, None]:
        """Hugging Face's attention: query [1, H, Q, D], key and value [1, Hk, n, D] to [1, Q, H, D].

        Raises:
            ValueError: the model's attention is not plain: capped logits, learned sinks.
        """
        beyond = [name for name in BEYOND_PLAIN if options.get(name) is not None]
        if beyond:
            raise ValueError(
                f"attention with {beyond[0]}={options[beyond[0]]}: expected plain attention; use another model"
            )
        if self._window is not None and options.get("sliding_window") is not None:
            return attend_within(self._window, query, key, value, scaling), None
        if self._policy is None:
            output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
            return output.transpose(1, 2).contiguous(), None
        view = LayerView.of_last(module.layer_idx, query, key, value, query.shape[2], scaling)
        mask = self._policy.mask(view)
        output = view.heads_output(view.weights(mask))
        if self._observer is not None:
            self._observer(view, mask)
        return output[None].to(query.dtype), None
