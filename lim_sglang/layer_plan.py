"""Which layer attends densely, which chooses the token set, which is sparse (arXiv 2508.07101).

Imports neither torch nor sglang. A model's select layers come from the table of presets, else from a rule.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

from lim_sglang.config import FLAGS, LimConfigError, check_layer_numbers

PAPER = "arXiv 2508.07101 v2, table 10"
MEASURED = "measured by this project"
RULE = "rule"
GATED_DELTA_NETS = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
"""Types of text configs whose layers are gated delta nets or full attention, and nothing else."""
MIN_AUTO_LAYERS = 4  # attending to all tokens; below, two dense layers and a select layer leave none to be sparse


class LayerRole(Enum):
    """What a layer does in a decode step; in prefill every layer is dense."""

    DENSE = "dense"  # full attention
    SELECT = "select"  # full attention, and it chooses the token set of the layers after it
    SPARSE = "sparse"  # attends to the set of the nearest SELECT layer before it
    WINDOW = "window"  # attends to the last tokens only, as SGLang does it


@dataclass(frozen=True)
class LayerPlan:
    """The role of every layer of a model, from the input on.

    Attributes:
        roles: by layer number, of the layers that attend to all tokens when attention is dense.
        attending: those of them where this plan is used, None for all layers: some models have blocks without
            attention or with a window, and a pipeline stage holds only its own layers.
        windows: the layers with a sliding window where this plan is used.
        window_tokens: how many tokens they see, the current one included.

    Raises:
        LimConfigError: a SPARSE layer before the first SELECT layer, which has no token set.
    """

    roles: tuple[LayerRole, ...]
    attending: frozenset[int] | None = None
    windows: frozenset[int] = frozenset()
    window_tokens: int = 0

    def __post_init__(self) -> None:
        self.check_stage(0, len(self.roles))

    @classmethod
    def from_select_layers(
        cls, num_layers: int, select_layers: Sequence[int], attending: Collection[int] | None = None
    ) -> "LayerPlan":
        """Layers before the first of ``select_layers`` are DENSE, those listed SELECT, all others SPARSE.

        Args:
            attending: the layers that attend to all tokens; None for all layers.

        Raises:
            LimConfigError: ``select_layers`` is empty, not ascending, or names a layer that the model lacks or that
                does not attend.
        """
        layers = check_layer_numbers(tuple(select_layers))
        if num_layers < 1:
            raise LimConfigError(f"num_layers={num_layers} is not allowed: expected at least 1; pass the model's depth")
        if layers[-1] >= num_layers:
            raise LimConfigError(_beyond_depth(num_layers, layers))
        roles = [LayerRole.DENSE if layer < layers[0] else LayerRole.SPARSE for layer in range(num_layers)]
        for layer in layers:
            roles[layer] = LayerRole.SELECT
        plan = cls(tuple(roles))
        return plan if attending is None else plan.limited_to(attending, 0, num_layers)

    @cached_property
    def select_layers(self) -> tuple[int, ...]:
        """The numbers of the SELECT layers that attend here, ascending."""
        return tuple(layer for layer in self._layers if self.roles[layer] is LayerRole.SELECT)

    @cached_property
    def _layers(self) -> Sequence[int]:
        """The numbers of the layers that attend to all tokens here, ascending."""
        return range(len(self.roles)) if self.attending is None else sorted(self.attending)

    def limited_to(self, attending: Collection[int], start_layer: int, end_layer: int) -> "LayerPlan":
        """The plan of a stage, layers ``start_layer .. end_layer - 1``, where ``attending`` attend to all tokens.

        Raises:
            LimConfigError: a SELECT layer of the stage does not attend, so that nothing would choose a set there.
        """
        selecting = [layer for layer in range(start_layer, end_layer) if self.roles[layer] is LayerRole.SELECT]
        if idle := [layer for layer in selecting if layer not in attending]:
            raise LimConfigError(self._idle(idle[0], sorted(attending)))
        return replace(self, attending=frozenset(attending))

    def with_windows(self, windows: Collection[int], tokens: int) -> "LayerPlan":
        """The plan where the layers ``windows``, none of which attends to all, see the last ``tokens`` tokens."""
        return replace(self, windows=frozenset(windows), window_tokens=tokens)

    @property
    def kinds(self) -> tuple[LayerRole, ...]:
        """The roles that layers of this plan may have."""
        return tuple(role for role in LayerRole if role is not LayerRole.WINDOW or self.windows)

    def role(self, layer_id: int) -> LayerRole:
        """The role of layer ``layer_id``, counted from 0 in the whole model.

        Raises:
            IndexError: the model has no such layer; negative numbers do not count from the end.
        """
        if not 0 <= layer_id < len(self.roles):
            raise IndexError(f"layer_id={layer_id}: expected 0 to {len(self.roles) - 1}")
        return LayerRole.WINDOW if layer_id in self.windows else self.roles[layer_id]

    def count(self, role: LayerRole) -> int:
        """How many of the layers here have ``role``."""
        if role is LayerRole.WINDOW:
            return len(self.windows)
        return sum(self.roles[layer] is role for layer in self._layers)

    def check_stage(self, start_layer: int, end_layer: int) -> None:
        """Check that layers ``start_layer .. end_layer - 1``, a pipeline stage, can run: no set crosses stages.

        Raises:
            LimConfigError: a SPARSE layer of the stage has no SELECT layer before it in the stage.
            ValueError: the model has no such stage.
        """
        if not 0 <= start_layer <= end_layer <= len(self.roles):
            raise ValueError(f"stage {start_layer}..{end_layer}: expected 0 <= start <= end <= {len(self.roles)}")
        for layer in (layer for layer in self._layers if start_layer <= layer < end_layer):
            if self.roles[layer] is LayerRole.SELECT:
                return
            if self.roles[layer] is LayerRole.SPARSE:
                raise LimConfigError(self._no_set(start_layer, end_layer, layer))

    def _no_set(self, start_layer: int, end_layer: int, layer: int) -> str:
        fixed = ",".join(map(str, sorted({*self.select_layers, layer})))
        return (
            f"select_layers={list(self.select_layers)} is not allowed with a stage of layers {start_layer} to "
            f"{end_layer - 1}: sparse layer {layer} has no select layer before it there, expected one from "
            f"{start_layer} to {layer}; for example {FLAGS['select_layers']} {fixed}"
        )

    def _idle(self, layer: int, attending: Sequence[int]) -> str:
        fixed = sorted({min(attending, key=lambda other: abs(other - select)) for select in self.select_layers})
        return (
            f"select_layers={list(self.select_layers)} is not allowed: layer {layer} of this model does not attend "
            f"to all tokens, so it cannot select, expected layers among {_ranges(attending)}; for example "
            f"{FLAGS['select_layers']} {','.join(map(str, fixed))}"
        )


@dataclass(frozen=True)
class Preset:
    """Select layers of one model, recognised by its shape.

    Attributes:
        model: the model's name, for readers.
        architecture: the class name in the ``architectures`` of the model config.
        num_layers, hidden_size, num_kv_heads: the shape, as in the model config.
        select_layers: what to use.
        source: where that comes from.
        name_hint: lower-case letters and digits that the model's name or path contains; only where models share a
            shape, and then the entry with a hint stands before the one without.
    """

    model: str
    architecture: str
    num_layers: int
    hidden_size: int
    num_kv_heads: int
    select_layers: tuple[int, ...]
    source: str
    name_hint: str = ""

    def matches(
        self, num_layers: int, architecture: str, hidden_size: int, num_kv_heads: int, model_name: str | None
    ) -> bool:
        """Whether a model has this shape and, if the entry has a hint, such a name."""
        shape = (self.num_layers, self.architecture, self.hidden_size, self.num_kv_heads)
        return shape == (num_layers, architecture, hidden_size, num_kv_heads) and self.name_hint in _plain(model_name)


PRESETS = (
    Preset("Qwen3-4B", "Qwen3ForCausalLM", 36, 2560, 8, (2, 20), PAPER),
    Preset("Qwen3-8B", "Qwen3ForCausalLM", 36, 4096, 8, (2, 12), PAPER),
    Preset("Qwen3-14B", "Qwen3ForCausalLM", 40, 5120, 8, (2, 12), PAPER),
    Preset("DeepSeek-R1-Distill-Llama-8B", "LlamaForCausalLM", 32, 4096, 8, (2, 12), PAPER, "deepseekr1distill"),
    Preset("Llama-3-8B, Llama-3.1-8B", "LlamaForCausalLM", 32, 4096, 8, (2, 13), PAPER),
    Preset("LongChat-7B", "LlamaForCausalLM", 32, 4096, 32, (2, 7), PAPER),
    Preset("SmolLM2-135M", "LlamaForCausalLM", 30, 576, 3, (2, 17), MEASURED),
)


def select_layers_for_model(
    num_layers: int,
    architecture: str,
    hidden_size: int,
    num_kv_heads: int,
    model_name: str | None,
    attending: Sequence[int] | None = None,
) -> tuple[tuple[int, ...], str]:
    """The select layers that ``"auto"`` stands for: a preset, else two of the attending layers by a rule.

    The rule takes the third attending layer and the one at two thirds; in a hybrid, where most layers do not attend, or
    not to all tokens, and the first that does lies behind some of them, the second and the one at two thirds.

    Args:
        num_layers, architecture, hidden_size, num_kv_heads: the shape, as in the model config (not per TP rank).
        model_name: the model's name or path; it decides between models of one shape.
        attending: ascending numbers of the layers that attend to all tokens; None for all.

    Returns:
        ``(select_layers, source)``. The source is ``RULE`` without a preset; then warn with ``rule_warning``.

    Raises:
        LimConfigError: no preset, and too few layers for the rule.
    """
    for preset in PRESETS:
        if preset.matches(num_layers, architecture, hidden_size, num_kv_heads, model_name):
            return preset.select_layers, preset.source
    layers = range(num_layers) if attending is None else attending
    if len(layers) < MIN_AUTO_LAYERS:
        raise LimConfigError(
            f'select_layers="auto" is not allowed for a model of {len(layers)} layers that attend to all tokens: '
            f"expected at least {MIN_AUTO_LAYERS}; name select_layers, for example {FLAGS['select_layers']} {layers[0]}"
        )
    is_hybrid = 2 * len(layers) < num_layers
    return tuple(sorted({layers[1 if is_hybrid else 2], layers[2 * len(layers) // 3]})), RULE


def rule_warning(model_name: str | None, select_layers: Sequence[int]) -> str:
    """One line that warns about select layers taken from the rule and names the flag that sets others."""
    layers = ",".join(map(str, select_layers))
    return (
        f"no preset for {' '.join((model_name or 'this model').split())}: select layers {layers} follow a rule of "
        f"thumb, and their choice matters for accuracy; choose them with lim-sglang calibrate, set "
        f"them with {FLAGS['select_layers']}"
    )


def _beyond_depth(num_layers: int, layers: Sequence[int]) -> str:
    inside = [layer for layer in layers if layer < num_layers] or [num_layers // 2]
    return (
        f"select_layers={list(layers)} is not allowed for a model of {num_layers} layers: expected layers from 0 to "
        f"{num_layers - 1}; for example {FLAGS['select_layers']} {','.join(map(str, inside))}"
    )


def _ranges(layers: Sequence[int]) -> str:
    """Ascending numbers in words, runs cut short: "0 to 3, 5"."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return ", ".join(
        str(start) if start == end else f"{start} to {end}" for start, end in zip(starts, ends, strict=True)
    )


def _plain(name: str | None) -> str:
    return "".join(char for char in (name or "").lower() if char.isalnum())
