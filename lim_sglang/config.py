"""The configuration of LessIsMore (arXiv 2508.07101): one frozen object from flags, model config and environment.

Imports neither torch nor sglang. Everything that cannot work is rejected with a ``LimConfigError`` of one line that
names where the value came from, the key, the value, what is allowed and a way out. That a layer exists in the model
is checked by ``layer_plan``, which knows the model's depth.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeGuard, TypeVar

from lim_kernels.select.budget import MAX_BUDGET, BudgetParts, split_budget

ENV_CONFIG = "SGLANG_LIM_CONFIG"
MODEL_CONFIG_KEY = "lim_config"
MODEL_SOURCE = f"{MODEL_CONFIG_KEY} in --json-model-override-args"
FLAGS = {
    "budget": "--lim-budget",
    "recency_ratio": "--lim-recency-ratio",
    "sink_tokens": "--lim-sink-tokens",
    "select_layers": "--lim-select-layers",
}
SelectLayers = tuple[int, ...] | Literal["auto"]

_ALLOWED = {
    "budget": f"an integer from 1 to {MAX_BUDGET}",
    "recency_ratio": "a number from 0 to 1",
    "sink_tokens": f"an integer from 0 to {MAX_BUDGET}",
    "select_layers": '"auto" or a list of ascending, distinct layer numbers from 0 on',
}
_EXAMPLES = {"budget": "2048", "recency_ratio": "0.25", "sink_tokens": "4", "select_layers": "[2, 12]"}
_OBJECT_EXPECTED = 'expected a JSON object such as {"budget": 2048, "select_layers": [2, 12]}'
_T = TypeVar("_T")


class LimConfigError(ValueError):
    """A configuration that cannot work; the message is one line."""


@dataclass(frozen=True)
class LimConfig:
    """What a user can set.

    Attributes:
        budget: ``K``, tokens that a sparse layer attends to, 1 to ``MAX_BUDGET``.
        recency_ratio: ``r``, the share of the budget for sinks and the recency window, 0 to 1.
        sink_tokens: ``s``, first tokens of the sequence that are always kept; at most ``K - int(K * (1 - r))``.
        select_layers: ascending numbers of the layers that choose the token set, or ``"auto"``: by model.

    Raises:
        LimConfigError: a value that cannot work.
    """

    budget: int = 2048
    recency_ratio: float = 0.25
    sink_tokens: int = 4
    select_layers: SelectLayers = "auto"

    def __post_init__(self) -> None:
        for key, check in _CHECKS.items():
            object.__setattr__(self, key, check(getattr(self, key)))
        _check_fit(self.budget, self.recency_ratio, self.sink_tokens)

    @property
    def parts(self) -> BudgetParts:
        """The parts of the budget, in tokens."""
        return split_budget(self.budget, self.recency_ratio, self.sink_tokens)

    def to_dict(self) -> dict[str, Any]:
        """The same object in plain JSON types, as every source accepts it."""
        layers = self.select_layers
        return {
            "budget": self.budget,
            "recency_ratio": self.recency_ratio,
            "sink_tokens": self.sink_tokens,
            "select_layers": layers if isinstance(layers, str) else list(layers),
        }


def resolve_config(flags: Mapping[str, Any] | None, model: Mapping[str, Any] | None, env: str | None) -> LimConfig:
    """Merge the three sources key by key: flags win over the model config, which wins over the environment.

    Args:
        flags: values by configuration key, as ``parse_flag_values`` returns them.
        model: the object under ``lim_config`` in the model config.
        env: the text of ``SGLANG_LIM_CONFIG``; blank counts as unset.

    Raises:
        LimConfigError: any source holds a value that cannot work, even one that another source overrides.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    env_values = parse_config_json(env, ENV_CONFIG) if env and env.strip() else {}
    for mapping, source in ((env_values, ENV_CONFIG), (model, MODEL_SOURCE), (flags, None)):
        checked = _check_mapping({} if mapping is None else mapping, source)
        values |= checked
        origin |= {key: source or FLAGS[key] for key in checked}
    with_origin = [origin[key] for key in ("budget", "recency_ratio", "sink_tokens") if key in origin]
    return _sourced(lambda: LimConfig(**values), " and ".join(dict.fromkeys(with_origin)))


def parse_config_json(text: str, source: str) -> dict[str, Any]:
    """Read a JSON object; its keys and values are checked later, by ``resolve_config``.

    Raises:
        LimConfigError: not JSON (with line and column), a key given twice, or not an object.
    """
    try:
        value = json.loads(text, object_pairs_hook=_distinct_keys)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise LimConfigError(f"{source}: malformed JSON at {where}: {error.msg}; {_OBJECT_EXPECTED}") from error
    except (ValueError, RecursionError) as error:
        raise LimConfigError(f"{source}: unusable JSON: {_one_line(str(error))}; {_OBJECT_EXPECTED}") from error
    if not isinstance(value, dict):
        raise LimConfigError(f"{source}: {_show(value)} is not an object; {_OBJECT_EXPECTED}")
    return value


def parse_flag_values(
    budget: str | None,
    recency_ratio: str | None,
    sink_tokens: str | None,
    select_layers: str | Sequence[str] | None,
) -> dict[str, Any]:
    """Turn the text of the command-line flags into values; a flag that is not given (None) is left out.

    ``select_layers`` may be one word (``2,12``) or several (``2 12``, as SGLang passes a YAML list on).

    Raises:
        LimConfigError: the text is not of the flag's kind, or the value cannot work.
    """
    texts: dict[str, str | Sequence[str] | None] = {
        "budget": budget,
        "recency_ratio": recency_ratio,
        "sink_tokens": sink_tokens,
        "select_layers": select_layers,
    }
    parsed = {key: _parse_flag(key, text) for key, text in texts.items() if text is not None}
    return _check_mapping(parsed, None)


def check_select_layers(value: object) -> SelectLayers:
    """Return ``"auto"``, or what ``check_layer_numbers`` returns."""
    return "auto" if value == "auto" else check_layer_numbers(value)


def check_layer_numbers(value: object) -> tuple[int, ...]:
    """Return a list or tuple of ascending, distinct layer numbers from 0 on as a tuple.

    Raises:
        LimConfigError: anything else, an empty list included.
    """
    if not isinstance(value, list | tuple) or not all(_is_int(layer) for layer in value):
        raise _rejected("select_layers", value)
    if not value:
        raise _rejected("select_layers", value, 'name at least one layer, or write "auto"')
    if min(value) < 0:
        raise _rejected("select_layers", value, "count layers from 0, the first after the embedding")
    ordered = sorted(set(value))
    if list(value) != ordered:
        raise _rejected("select_layers", value, f"write {_show(ordered)}")
    return tuple(value)


def _check_budget(value: object) -> int:
    return _check_count("budget", value, 1)


def _check_sinks(value: object) -> int:
    return _check_count("sink_tokens", value, 0)


def _check_count(key: str, value: object, minimum: int) -> int:
    if _is_int(value) and minimum <= value <= MAX_BUDGET:
        return value
    is_whole = isinstance(value, float) and value.is_integer() and minimum <= value <= MAX_BUDGET
    raise _rejected(key, value, f"write {value:.0f}" if is_whole else "")


def _check_ratio(value: object) -> float:
    if (isinstance(value, float) or _is_int(value)) and 0 <= value <= 1:
        return float(value)
    raise _rejected("recency_ratio", value)


_CHECKS: dict[str, Callable[[object], Any]] = {
    "budget": _check_budget,
    "recency_ratio": _check_ratio,
    "sink_tokens": _check_sinks,
    "select_layers": check_select_layers,
}


def _check_fit(budget: int, recency_ratio: float, sink_tokens: int) -> None:
    room = budget - int(budget * (1 - recency_ratio))
    if sink_tokens <= room:
        return
    fixes = [f"set sink_tokens to at most {room}"]
    if sink_tokens <= budget:
        fixes.append(f"or recency_ratio to at least {math.ceil(sink_tokens / budget * 1e4) / 1e4}")
    if sink_tokens <= recency_ratio * MAX_BUDGET:
        fixes.append(f"or budget to at least {math.ceil(sink_tokens / recency_ratio)}")
    raise LimConfigError(
        f"sink_tokens={sink_tokens} does not fit: budget={budget} with recency_ratio={recency_ratio} leaves {room} "
        f"tokens for sinks and recency window together, so 0 to {room} sinks are allowed; {' '.join(fixes)}"
    )


def _check_mapping(mapping: object, source: str | None) -> dict[str, Any]:
    """Check every key and value of one source; without ``source``, the source is the flag of the key."""
    if not isinstance(mapping, Mapping):
        raise LimConfigError(f"{source or 'flags'}: {_show(mapping)} is not an object; {_OBJECT_EXPECTED}")
    checked = {}
    for key, value in mapping.items():
        if key not in _CHECKS:
            raise LimConfigError(f"{source or 'flags'}: {_unknown_key(key, value)}")
        checked[key] = _sourced(partial(_CHECKS[key], value), source or FLAGS[key])
    return checked


def _sourced(build: Callable[[], _T], source: str) -> _T:
    """Call ``build``; a ``LimConfigError`` from it gains the source in front."""
    try:
        return build()
    except LimConfigError as error:
        raise LimConfigError(f"{source}: {error}") from None


def _parse_flag(key: str, words: str | Sequence[str]) -> object:
    text = words if isinstance(words, str) else " ".join(words)
    try:
        if key == "select_layers":
            parts = re.split(r"\s*,\s*|\s+", text.strip())
            return "auto" if parts == ["auto"] else [int(part) for part in parts]
        return float(text) if key == "recency_ratio" else int(text)
    except ValueError:
        example = _EXAMPLES[key].strip("[]").replace(" ", "")
        raise LimConfigError(f"{FLAGS[key]}: {_rejected(key, text, f'for example {FLAGS[key]} {example}')}") from None


def _rejected(key: str, value: object, fix: str = "") -> LimConfigError:
    fix = fix or f"for example {_EXAMPLES[key]}"
    return LimConfigError(f"{key}={_show(value)} is not allowed: expected {_ALLOWED[key]}; {fix}")


def _unknown_key(key: object, value: object) -> str:
    close = difflib.get_close_matches(str(key), _CHECKS, n=1)
    fix = f"did you mean {close[0]}?" if close else "remove it"
    return f"unknown key {_show(key)} (value {_show(value)}): allowed keys are {', '.join(_CHECKS)}; {fix}"


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"key {_show(twice)} is given twice, keep one")
    return dict(pairs)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _show(value: object) -> str:
    """``value`` as it is written in Python, on one line of at most 80 characters."""
    text = _one_line(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _one_line(text: str) -> str:
    return " ".join(text.split())
