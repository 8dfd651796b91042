"""The algorithm a second time: a Hugging Face model in float32, written for reading, sharing no code with the product.

`SparseOracle.score` replays a conversation as a server lives it: every turn's new tokens are a dense extend over the
KV cache, every generated token but the last of a turn is fed back by one sparse decode step. The tokens are given
(teacher forcing), so a server and the oracle are compared on the same history whatever either would have sampled.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM, DynamicCache, PreTrainedModel

# Ten times the difference in `q . k` between two orders of summation.
NEAR_TIE_MARGIN = 1e-4
_registrations = itertools.count()

Turn = tuple[Sequence[int], Sequence[int]]
"""New prompt tokens, then the tokens that were generated after them."""


@dataclass(frozen=True)
class OracleSettings:
    """The token set's parameters: `K`, `r` and `s` of the specification, and the layer plan.

    `margin`: what two scores may differ by, at most, to be called a near-tie.
    """

    budget: int
    recency_ratio: float
    sink_tokens: int
    select_layers: tuple[int, ...]
    dense_layers: tuple[int, ...] = (0, 1)
    margin: float = NEAR_TIE_MARGIN

    def always_dense(self) -> "OracleSettings":
        """The same plan with a budget that no request of this model reaches."""
        return replace(self, budget=1 << 30)


def merge_rankings(rankings: np.ndarray, count: int) -> list[int]:
    """Read `rankings` [heads, candidates] rank by rank, head by head; the first `count` distinct entries."""
    chosen: dict[int, None] = {}
    for rank in range(rankings.shape[1]):
        for head in range(rankings.shape[0]):
            if len(chosen) == count:
                return list(chosen)
            chosen[int(rankings[head, rank])] = None
    return list(chosen)


def near_tie(scores: np.ndarray, rankings: np.ndarray, count: int, margin: float) -> bool:
    """Whether another order of two neighbours in one head's ranking, closer than `margin`, changes the merged set."""
    chosen = set(merge_rankings(rankings, count))
    gaps = -np.diff(np.take_along_axis(scores, rankings, axis=1), axis=1)
    for head, rank in np.argwhere(gaps[:, :count] < margin):
        swapped = rankings.copy()
        swapped[head, [rank, rank + 1]] = rankings[head, [rank + 1, rank]]
        if set(merge_rankings(swapped, count)) != chosen:
            return True
    return False


@dataclass(frozen=True)
class Choice:
    """The set of one decode step: cached positions in ascending order, and whether float32 noise could change it."""

    positions: list[int]
    near_tie: bool = False


def choose_tokens(scores: np.ndarray, settings: OracleSettings) -> Choice:
    """Choose from `scores` [query heads, n], the unscaled `q . k` of every cached position."""
    n = scores.shape[1]
    if n <= settings.budget:
        return Choice(list(range(n)))
    selected = int(settings.budget * (1 - settings.recency_ratio))
    reserved = settings.budget - selected
    sinks = settings.sink_tokens if reserved >= settings.sink_tokens else 0
    first_recent = n - (reserved - sinks)
    candidates = scores[:, sinks:first_recent]
    rankings = np.argsort(-candidates, axis=1, kind="stable")
    chosen = [sinks + candidate for candidate in merge_rankings(rankings, selected)]
    positions = sorted([*range(sinks), *chosen, *range(first_recent, n)])
    return Choice(positions, near_tie(candidates, rankings, selected, settings.margin))


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, window: int | None = None
) -> torch.Tensor:
    """Dense attention of the last `q` of `n` positions: query [1, H, q, d], key and value [1, KV heads, n, d].

    `window`: how many positions each sees, its own included; all before it if there is none.
    """
    group, (q, n) = query.shape[1] // key.shape[1], (query.shape[2], key.shape[2])
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    if q == n and window is None:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    visible = torch.ones(q, n, dtype=torch.bool).tril(diagonal=n - q)
    if window is not None:
        visible = visible.triu(diagonal=n - q - window + 1)
    return scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scaling)


def query_key_scores(query: torch.Tensor, key: torch.Tensor) -> np.ndarray:
    """Unscaled `q . k` of one query position: query [1, H, 1, d], key [1, KV heads, n, d]; result [H, n]."""
    grouped = query.reshape(key.shape[1], -1, query.shape[3])
    return (grouped @ key[0].transpose(1, 2)).reshape(query.shape[1], -1).numpy()


class SparseOracle:
    """Scores tokens under the sparse algorithm; one decode step at a time, batch 1, float32, CPU.

    `near_ties` lists, as (layer, cached tokens), the selections of the last `score` that float32 noise could change:
    a server that sums in another order may hold one other token of the set there and be as right.
    """

    def __init__(self, model: PreTrainedModel, settings: OracleSettings) -> None:
        self.model = model
        self.settings = settings
        self.decoding = False
        self.token_set: list[int] | None = None
        self.sparse_steps = 0
        self.near_ties: list[tuple[int, int]] = []
        self._prefilled: dict[tuple[int, ...], tuple[DynamicCache, torch.Tensor]] = {}
        name = f"lim_oracle_{next(_registrations)}"
        AttentionInterface.register(name, self._attend)
        self._implementation = name

    @classmethod
    def load(cls, model_path: str, settings: OracleSettings) -> "SparseOracle":
        """Read a checkpoint into float32."""
        return cls(AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval(), settings)

    def with_settings(self, settings: OracleSettings) -> "SparseOracle":
        """Another oracle over the same weights; the prompts already prefilled are shared, prefill being dense."""
        other = SparseOracle(self.model, settings)
        other._prefilled = self._prefilled
        return other

    @torch.inference_mode()
    def score(self, turns: Sequence[Turn], *, last_token_fed: bool = False) -> list[list[float]]:
        """Log-probability of each generated token, turn by turn, given everything before it.

        A turn's last token enters the cache with the next turn's extend, or, when `last_token_fed`, by a decode step
        of its own: the one that an overlapping scheduler has launched before it learns that the turn is over.
        """
        self.model.set_attn_implementation(self._implementation)
        self.near_ties = []
        # By its config a cache would drop what lies before the windows.
        windows = "sliding_attention" in (getattr(self.model.config, "layer_types", None) or [])
        cache, unfed, scored = DynamicCache(config=None if windows else self.model.config), [], []
        for prompt, generated in turns:
            cache, logits = self._extend(cache, [*unfed, *prompt])
            scored.append(self._decode(cache, logits, generated))
            unfed = [generated[-1]]
            if last_token_fed:
                self._forward(cache, unfed, decoding=True)
                unfed = []
        return scored

    def _extend(self, cache: DynamicCache, tokens: Sequence[int]) -> tuple[DynamicCache, torch.Tensor]:
        """Dense attention over the cache and the new tokens; the result of a conversation's first prompt is kept."""
        if cache.get_seq_length() > 0:
            return cache, self._forward(cache, tokens, decoding=False)
        prompt = tuple(tokens)
        if prompt not in self._prefilled:
            self._prefilled[prompt] = cache, self._forward(cache, tokens, decoding=False)
        return copy.deepcopy(self._prefilled[prompt])

    def _decode(self, cache: DynamicCache, logits: torch.Tensor, generated: Sequence[int]) -> list[float]:
        """The first token is scored by the extend's `logits`, each later one by the step that fed its predecessor."""
        scored = [float(logits.log_softmax(-1)[generated[0]])]
        for fed, token in itertools.pairwise(generated):
            logits = self._forward(cache, [fed], decoding=True)
            scored.append(float(logits.log_softmax(-1)[token]))
        return scored

    def _forward(self, cache: DynamicCache, tokens: Sequence[int], *, decoding: bool) -> torch.Tensor:
        """Run the model over `tokens`, appending their KV to `cache`; the last position's logits [vocabulary]."""
        self.decoding, self.token_set = decoding, None
        output = self.model(torch.tensor([list(tokens)]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[0, -1]

    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """What transformers calls in each layer: query [1, H, q, d], key and value [1, KV heads, n, d]."""
        window = kwargs.get("sliding_window")
        if self.decoding and window is None:
            key, value = self._visible(module.layer_idx, query, key, value)
        return causal_attention(query, key, value, scaling, window).transpose(1, 2), None

    def _visible(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The part of the cache that `layer` sees in a decode step; select layers see all and choose the set."""
        if layer in self.settings.select_layers:
            choice = choose_tokens(query_key_scores(query, key), self.settings)
            self.token_set = choice.positions
            self.sparse_steps += layer == self.settings.select_layers[0] and len(choice.positions) < key.shape[2]
            if choice.near_tie:
                self.near_ties.append((layer, key.shape[2]))
        if layer in self.settings.dense_layers or layer in self.settings.select_layers:
            return key, value
        if self.token_set is None:
            raise ValueError(f"layer {layer} is sparse but no select layer comes before it")
        return key[:, :, self.token_set], value[:, :, self.token_set]
