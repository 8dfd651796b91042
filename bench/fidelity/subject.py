"""The model that is looked at, with the texts as it reads them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from bench import driver
from bench.fidelity.texts import TEXTS
from lim_sglang.layer_plan import select_layers_for_model
from lim_sglang.tools.analysis.model import PolicyModel
from lim_sglang.tools.common import positive
from lim_sglang.tools.servers.embedded_model import ensure_model

MOST_TOKENS = 200_000  # of a text


def subject_parser(description: str | None, contexts: Sequence[int]) -> driver.Parser:
    """The command line of what measures a subject behind stretches of its texts, ``contexts`` tokens long."""
    parser = driver.parser(description)
    parser.add_argument("--model", help="folder of a model; the embedded one if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--texts", nargs="+", choices=list(TEXTS), default=list(TEXTS))
    parser.add_argument("--contexts", nargs="+", type=positive, default=contexts, help="tokens before what is measured")
    parser.add_argument("--windows", type=positive, default=2, help="stretches per text and context")
    driver.add_out(parser)
    parser.add_argument("--quiet", action="store_true")
    return parser


@dataclass(frozen=True)
class Subject:
    """A model, float32, and what belongs to it."""

    folder: Path  # in Hugging Face's format
    model: PolicyModel
    tokenizer: Any
    select_layers: tuple[int, ...]  # those that serving this model takes by default
    _ids: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path | None, device: str = "cpu") -> Subject:
        """The model of a folder, or the embedded one; ends with one line where the folder holds none."""
        folder = ensure_model() if folder is None else Path(folder)
        if not (folder / "config.json").is_file():
            sys.exit(f"fidelity: error: --model {folder} holds no config.json: expected the local folder of a model")
        model = PolicyModel.load(folder, device)
        config = model.model.config
        select_layers, _ = select_layers_for_model(
            model.num_layers, config.architectures[0], config.hidden_size, config.num_key_value_heads, str(folder)
        )
        return cls(folder, model, AutoTokenizer.from_pretrained(folder), select_layers)

    def ids(self, text: str) -> list[int]:
        """The tokens of a text of ``TEXTS``, its first 200,000 at most."""
        if text not in self._ids:
            ids = self.tokenizer(TEXTS[text](), add_special_tokens=False, verbose=False).input_ids
            self._ids[text] = ids[:MOST_TOKENS]
        return self._ids[text]

    def stretch(self, text: str, length: int, number: int, count: int) -> list[int]:
        """``length`` tokens of a text, the ``number``-th (from 0) of ``count`` stretches spread evenly over it.

        Ends with one line where the text is shorter.
        """
        ids = self.ids(text)
        if len(ids) < length:
            sys.exit(
                f"fidelity: error: text {text!r} has {len(ids)} tokens: expected at least {length}; lower --contexts"
            )
        start = (len(ids) - length) * number // (count - 1) if count > 1 else 0
        return ids[start : start + length]
