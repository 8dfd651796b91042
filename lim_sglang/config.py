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
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal, TypeGuard, TypeVar

from lim_kernels.select.budget import MAX_BUDGET, BudgetParts, split_budget

ENV_CONFIG = "SGLANG_LIM_CONFIG"
ENV_DRAFTS = "SGLANG_LIM_DRAFTS"
"""The key ``drafts`` by a variable of its own: any other source that names the key wins over it.

``auto`` has always meant measured costs on any device here, which is what the key calls ``measured``.
"""
_DRAFTS_BY_VARIABLE = {"auto": "measured", "always": "always"}
MODEL_CONFIG_KEY = "lim_config"
MODEL_SOURCE = f"{MODEL_CONFIG_KEY} in --json-model-override-args"
SelectLayers = tuple[int, ...] | Literal["auto"]

_OBJECT_EXPECTED = 'expected a JSON object such as {"budget": 2048, "select_layers": [2, 12]}'
_T = TypeVar("_T")


class LimConfigError(ValueError):
    """A configuration that cannot work; the message is one line."""


@dataclass(frozen=True)
class Key:
    """What is declared once about a key of the configuration.

    Attributes:
        help: what it sets, in a few words.
        metavar: what stands for its value in ``--help``.
        allowed: its values in words.
        example: one of them as JSON.
        check: takes the key's name and a JSON value, returns it as the field holds it; raises ``LimConfigError``.
        read: makes a JSON value of a flag's text; raises ``ValueError``.
        several: whether the flag takes several words, which SGLang's ``--config`` makes of a YAML list.
    """

    help: str
    metavar: str
    allowed: str
    example: str
    check: Callable[[str, object], Any]
    read: Callable[[str], object]
    several: bool = False


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


def _check_count(key: str, value: object, *, minimum: int) -> int:
    if _is_int(value) and minimum <= value <= MAX_BUDGET:
        return value
    is_whole = isinstance(value, float) and value.is_integer() and minimum <= value <= MAX_BUDGET
    raise _rejected(key, value, f"write {value:.0f}" if is_whole else "")


def _check_ratio(key: str, value: object) -> float:
    if (isinstance(value, float) or _is_int(value)) and 0 <= value <= 1:
        return float(value)
    raise _rejected(key, value)


def _check_word(words: tuple[str, ...], key: str, value: object) -> str:
    if isinstance(value, str) and value in words:
        return value
    raise _rejected(key, value)


def _read_layers(text: str) -> object:
    parts = re.split(r"\s*,\s*|\s+", text.strip())
    return "auto" if parts == ["auto"] else [int(part) for part in parts]


def _declared(*, default: Any, **described: Any) -> Any:
    return field(default=default, metadata={"key": Key(**described)})


def _one_of(words: tuple[str, ...], **described: Any) -> Any:
    """A key that holds one of ``words``, by default the first."""
    *others, last = (f'"{word}"' for word in words)
    allowed = f"{', '.join(others)} or {last}"
    return _declared(default=words[0], allowed=allowed, check=partial(_check_word, words), read=str.strip, **described)


@dataclass(frozen=True)
class LimConfig:
    """What a user can set; how a value is written and judged stands in the field's ``Key``.

    Attributes:
        budget: ``K``, tokens that a sparse layer attends to, 1 to ``MAX_BUDGET``.
        recency_ratio: ``r``, the share of the budget for sinks and the recency window, 0 to 1.
        sink_tokens: ``s``, first tokens of the sequence that are always kept; at most ``K - int(K * (1 - r))``.
        select_layers: ascending numbers of the layers that choose the token set, or ``"auto"``: by model.
        drafts: how many tokens the lossless mode drafts in a round: ``"measured"``, as many as pay by measured costs;
            ``"always"``, as many as there may be; ``"auto"``, measured on a GPU, always on a CPU.
        draft_weights: what the lossless mode's drafts multiply by: ``"model"``, the model's own weights; ``"int8"``,
            copies of half of the bytes; ``"auto"``, copies on a GPU where they pay and take little memory.

    Raises:
        LimConfigError: a value that cannot work.
    """

    budget: int = _declared(
        default=2048,
        help="tokens that a sparse layer attends to",
        metavar="TOKENS",
        allowed=f"an integer from 1 to {MAX_BUDGET}",
        example="2048",
        check=partial(_check_count, minimum=1),
        read=int,
    )
    recency_ratio: float = _declared(
        default=0.25,
        help="share of the budget for sinks and the most recent tokens, 0 to 1",
        metavar="SHARE",
        allowed="a number from 0 to 1",
        example="0.25",
        check=_check_ratio,
        read=float,
    )
    sink_tokens: int = _declared(
        default=4,
        help="first tokens of the sequence that are always attended to",
        metavar="TOKENS",
        allowed=f"an integer from 0 to {MAX_BUDGET}",
        example="4",
        check=partial(_check_count, minimum=0),
        read=int,
    )
    select_layers: SelectLayers = _declared(  # noqa: RUF009 (a field of dataclasses)
        default="auto",
        help="layers that choose the token set, as in 2,12 or 2 12, or auto: by model",
        metavar="LAYERS",
        allowed='"auto" or a list of ascending, distinct layer numbers from 0 on',
        example="[2, 12]",
        check=lambda _name, value: "auto" if value == "auto" else check_layer_numbers(value),
        read=_read_layers,
        several=True,
    )
    drafts: str = _one_of(
        ("auto", "always", "measured"),
        help="drafts of a lossless round: always the most, measured: as many as pay, auto: measured on a GPU",
        metavar="WHEN",
        example='"always"',
    )
    draft_weights: str = _one_of(
        ("auto", "model", "int8"),
        help="weights of the lossless mode's drafts: the model's, int8 copies, or auto: copies where they pay",
        metavar="WEIGHTS",
        example='"int8"',
    )

    def __post_init__(self) -> None:
        for name, key in KEYS.items():
            object.__setattr__(self, name, key.check(name, getattr(self, name)))
        _check_fit(self.budget, self.recency_ratio, self.sink_tokens)

    @property
    def parts(self) -> BudgetParts:
        """The parts of the budget, in tokens."""
        return split_budget(self.budget, self.recency_ratio, self.sink_tokens)

    def drafts_by_costs(self, device: str) -> bool:
        """Whether measured costs decide how many tokens are drafted on SGLang's ``device``, like ``cuda:0``."""
        return self.drafts == "measured" or (self.drafts == "auto" and device.startswith("cuda"))

    def to_dict(self) -> dict[str, Any]:
        """The same object in plain JSON types, as every source accepts it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


KEYS: dict[str, Key] = {each.name: each.metadata["key"] for each in fields(LimConfig)}
FLAGS = {name: f"--lim-{name.replace('_', '-')}" for name in KEYS}


def resolve_config(
    flags: Mapping[str, Any] | None, model: Mapping[str, Any] | None, env: str | None, drafts: str | None = None
) -> LimConfig:
    """Merge the sources key by key: flags win over the model config, which wins over the environment.

    Args:
        flags: values by configuration key, as ``parse_flag_values`` returns them.
        model: the object under ``lim_config`` in the model config.
        env: the text of ``SGLANG_LIM_CONFIG``; blank counts as unset.
        drafts: the text of ``SGLANG_LIM_DRAFTS``; others than its two values count as unset, ``refusals`` has them.

    Raises:
        LimConfigError: any source holds a value that cannot work, even one that another source overrides.
    """
    values: dict[str, Any] = {"drafts": _DRAFTS_BY_VARIABLE[drafts]} if drafts in _DRAFTS_BY_VARIABLE else {}
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


def parse_flag_values(texts: Mapping[str, str | Sequence[str] | None]) -> dict[str, Any]:
    """Turn the text of the command-line flags, by key, into values; a flag that is not given (None) is left out.

    A text may be one word or several (``2,12``, or ``2 12``, as SGLang passes a YAML list on).

    Raises:
        LimConfigError: the text is not of the flag's kind, or the value cannot work.
    """
    parsed = {key: _parse_flag(key, text) for key, text in texts.items() if text is not None}
    return _check_mapping(parsed, None)


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
        if key not in KEYS:
            raise LimConfigError(f"{source or 'flags'}: {_unknown_key(key, value)}")
        checked[key] = _sourced(partial(KEYS[key].check, key, value), source or FLAGS[key])
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
        return KEYS[key].read(text)
    except ValueError:
        example = KEYS[key].example.strip('[]"').replace(" ", "")
        raise LimConfigError(f"{FLAGS[key]}: {_rejected(key, text, f'for example {FLAGS[key]} {example}')}") from None


def _rejected(key: str, value: object, fix: str = "") -> LimConfigError:
    fix = fix or f"for example {KEYS[key].example}"
    return LimConfigError(f"{key}={_show(value)} is not allowed: expected {KEYS[key].allowed}; {fix}")


def _unknown_key(key: object, value: object) -> str:
    close = difflib.get_close_matches(str(key), KEYS, n=1)
    fix = f"did you mean {close[0]}?" if close else "remove it"
    return f"unknown key {_show(key)} (value {_show(value)}): allowed keys are {', '.join(KEYS)}; {fix}"


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
