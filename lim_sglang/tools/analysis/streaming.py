"""A Hugging Face causal language model that runs one decoder layer at a time, straight from its safetensors files.

Only the layer that runs is in memory, beside the hidden states of all texts, so a model that does not fit as a whole
can still be looked into. Every attention is dense; what the last tokens of a text saw is handed to an observer.
"""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from lim_sglang.layer_plan import GATED_DELTA_NETS
from lim_sglang.tools.analysis.checkpoint import Checkpoint, Naming, StreamingError, readable
from lim_sglang.tools.analysis.model import LayerView, attend_within, attending_layers, window_in_effect

# Types whose forward pass is embedding, layers, norm, head, and how their published checkpoints name the weights.
# A further type of that kind needs its line here and one among the tests' configurations, which compare it.
MODEL_TYPES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "glm4_moe", "mellum"), Naming()),
    **dict.fromkeys((*GATED_DELTA_NETS, "qwen3_5", "qwen3_5_moe"), Naming()),  # the last two: with images
    "minimax_m2": Naming("block_sparse_moe", "w1", "w3", "w2"),
}

NESTED = "model.language_model"  # what image-text checkpoints call the text model's "model"
_registrations = itertools.count()


@dataclass(frozen=True)
class LayerSample:
    """What one layer did at the last ``Q`` tokens of one text; ``E`` is the hidden size.

    Attributes:
        window: the text's number.
        view: the attention of these tokens.
        residual: [Q, E] float32, the residual stream behind the layer.
        project: [Q, H, D] to [Q, E] float32, the tokens' output gates, if the model has them, and the output projection
            without its bias.
    """

    window: int
    view: LayerView
    residual: Tensor
    project: Callable[[Tensor], Tensor]


Observer = Callable[[LayerSample], None]


class StreamedModel:
    """See the module. One forward pass at a time; not for several threads."""

    def __init__(self, folder: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        """Read the configuration; weights are read when they are needed.

        Args:
            folder: config.json and safetensors files.
            dtype: of weights and hidden states; None for the checkpoint's own.

        Raises:
            StreamingError: the folder holds no model, or one of another kind than ``MODEL_TYPES``.
        """
        whole = read_config(Path(folder))
        self.config = whole.get_text_config()
        self.device = torch.device(device)
        self.num_layers = int(self.config.num_hidden_layers)
        self.attending = attending_layers(self.config)
        self._window = window_in_effect(self.config)
        quantization = getattr(whole, "quantization_config", None)
        self._checkpoint = Checkpoint(Path(folder), MODEL_TYPES[whole.model_type], quantization)
        self._name = NESTED if f"{NESTED}.norm.weight" in self._checkpoint else "model"
        self.dtype = dtype or getattr(self.config, "dtype", None) or self._checkpoint.dtype(f"{self._name}.norm.weight")
        self._attended: Any = None  # query, key, value and scale of the layer that ran
        self._queries: Any = None  # what its query projection gave, [1, n, H * D], or twice as wide: with gates
        with torch.device("meta"):
            # "eager" is the classes' own loop over the experts, which knows every dtype on every device.
            self._causal_lm = AutoModelForCausalLM.from_config(self.config, experts_implementation="eager").eval()
        name = f"lim_streaming_{next(_registrations)}"
        AttentionInterface.register(name, self._attend)
        self._causal_lm.config._attn_implementation = name
        self._decoder = self._causal_lm.model
        for layer in self.attending:
            self._decoder.layers[layer].self_attn.q_proj.register_forward_hook(self._keep_queries)
        self._rotary = type(self._decoder.rotary_emb)(config=self._causal_lm.config).to(self.device)

    @torch.inference_mode()
    def forward(
        self, windows: Sequence[Sequence[int]], samples: int = 0, observe: Observer | None = None
    ) -> Iterator[list[Tensor]]:
        """Run all texts through the model, layer by layer; nothing runs before the next item is asked for.

        Args:
            windows: token ids of every text.
            samples: ``Q``, at most the length of the shortest text.
            observe: called for every text in every layer that attends, while the layer's weights are there.

        Yields:
            The hidden states of every text, [1, n, E], once behind the embedding, then behind every layer. The list
            is the same one each time and its items are replaced.
        """
        with self._loaded(self._decoder.embed_tokens, f"{self._name}.embed_tokens") as embed:
            hidden = [embed(torch.tensor([list(ids)], device=self.device)) for ids in windows]
        yield hidden
        for index, module in enumerate(self._decoder.layers):
            with self._loaded(module, f"{self._name}.layers.{index}") as layer:
                for window in range(len(hidden)):
                    hidden[window] = self._run_layer(layer, index, window, hidden[window], samples, observe)
            yield hidden

    def _run_layer(
        self, layer: Any, index: int, window: int, hidden: Tensor, samples: int, observe: Observer | None
    ) -> Tensor:
        positions = torch.arange(hidden.shape[1], device=self.device)[None]
        output = layer(
            hidden,
            attention_mask=None,
            position_ids=positions,
            position_embeddings=self._rotate(index, hidden, positions),
            use_cache=False,
        )
        if observe is not None and index in self.attending:
            weight = layer.self_attn.o_proj.weight.float()
            query, key, value, scaling = self._attended
            view = LayerView.of_last(index, query, key, value, samples, scaling)
            gate = output_gate(self._queries[0, -samples:], view.queries)
            residual = output[0, -samples:].float()
            observe(LayerSample(window, view, residual, lambda heads: linear((heads * gate).flatten(1), weight)))
        self._attended = self._queries = None
        return output

    def _rotate(self, index: int, hidden: Tensor, positions: Tensor) -> Any:
        """The layer's position embeddings, which in some models go by its kind."""
        kinds = inspect.signature(self._rotary.forward).parameters
        by_kind = {"layer_type": self.config.layer_types[index]} if "layer_type" in kinds else {}
        return self._rotary(hidden, position_ids=positions, **by_kind)

    def _keep_queries(self, _module: Any, _args: Any, output: Tensor) -> None:
        self._queries = output

    def _attend(
        self, _module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, scaling: float, **options: Any
    ) -> tuple[Tensor, None]:
        """Hugging Face's attention: query [1, H, n, D], key and value [1, Hk, n, D] to [1, n, H, D]."""
        self._attended = query, key, value, scaling
        if self._window is not None and options.get("sliding_window") is not None:
            return attend_within(self._window, query, key, value, scaling), None
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return output.transpose(1, 2).contiguous(), None

    @contextmanager
    def _loaded(self, module: torch.nn.Module, prefix: str) -> Iterator[Any]:
        """``module`` with its weights, which are read now and dropped at the end.

        Buffers, which are the biases that a router chooses experts by, keep the precision that they are stored in.
        """
        as_stored = {name for name, _ in module.named_buffers()}
        tensors = {
            name: self._checkpoint.load(
                f"{prefix}.{name}", tensor.shape, self.device, None if name in as_stored else self.dtype
            )
            for name, tensor in module.state_dict().items()
        }
        self._checkpoint.close()
        module.load_state_dict(tensors, assign=True)
        try:
            yield module
        finally:
            module.to("meta")


def output_gate(projected: Tensor, queries: Tensor) -> Tensor:
    """[Q, H, D] float32 factors of the heads' outputs, or one for all, 1, where the model has no gates.

    A query projection of gated attention gives each head's query, then its gate: ``projected`` is twice as wide as
    ``queries``, [Q, H, D].
    """
    by_head = projected.float().unflatten(-1, (queries.shape[1], -1))
    size = queries.shape[2]
    return by_head[..., size:].sigmoid() if by_head.shape[-1] == 2 * size else by_head.new_ones(())


def read_config(folder: Path) -> Any:
    """The model's configuration, after a look at what cannot be streamed.

    Raises:
        StreamingError: no model, or one of another kind.
    """
    if not (folder / "config.json").is_file():
        raise StreamingError(f"{folder} holds no config.json: expected the local folder of a Hugging Face model")
    with readable(folder / "config.json"):
        raw = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if (model_type := raw.get("model_type")) not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise StreamingError(f"model_type={model_type!r} in {folder}/config.json is not supported: expected {known}")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if raw.get("rotary_dim"):  # MiniMax-M2's way to say it, which transformers 5.12 does not know
            config.rope_parameters.setdefault("partial_rotary_factor", raw["rotary_dim"] / config.head_dim)
    except Exception as error:
        raise StreamingError(f"{folder}/config.json is not usable: {error}") from error
    if not attending_layers(config.get_text_config()):
        raise StreamingError(
            f"{folder} has no layer that attends to all tokens: expected one that config.json's layer_types name so"
        )
    return config
