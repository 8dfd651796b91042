"""What the demo says: the shared prefix, the questions, and token ids read back from streamed pieces."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from lim_sglang.tools.common import CommandError
from lim_sglang.tools.demo import chat as demo_chat
from lim_sglang.tools.demo.chat import QUESTION_TOKENS, Chat, build_prefix, question, unambiguous
from lim_sglang.tools.servers.embedded_model import ensure_model


def test_prefix_arithmetic_is_right() -> None:
    sums = re.findall(r"(\d+(?: (?:\+|-|\*|//) \d+)+) = (\d+)", build_prefix(200))
    assert len(sums) == 400
    assert [expression for expression, value in sums if eval(expression) != int(value)] == []


# Token ids


WORDS = ("<end>", "a", "b", "�", "�")


@pytest.mark.parametrize(
    ("pieces", "text", "stop_id", "count", "expected"),
    [
        (["a", "b"], "a b", None, 2, ([1, 2], True)),
        (["a", "b"], "a b", 0, 3, ([1, 2, 0], True)),
        (["a", "b", "<end>"], "a b", 0, 3, ([1, 2, 0], True)),
        (["a", "�"], "a b", None, 2, ([1, 2], False)),
        (["a"], "a b", 0, 3, ([1, 2, 0], False)),
        ([], "", 0, 1, ([0], True)),
    ],
    ids=["length", "stop left out", "stop streamed", "ambiguous", "piece lost", "stop at once"],
)
def test_output_ids(
    pieces: list[str], text: str, stop_id: int | None, count: int, expected: tuple[list[int], bool]
) -> None:
    tokenizer = SimpleNamespace(encode=lambda text, **_: [WORDS.index(word) for word in text.split()])
    assert Chat(tokenizer, unambiguous(WORDS)).output_ids(pieces, text, stop_id, count) == expected


def test_the_real_tokenizer_and_conversations_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat.load(ensure_model(quiet=True))
    chat.check_fits(turns=4, max_tokens=160, context=8192)
    for turn in range(4):
        assert len(chat.render([{"role": "user", "content": question(turn)}])) < QUESTION_TOKENS
    ids = chat.tokenizer.encode("Step 1: 5 * 12 = 60 crates.")
    pieces = [chat.tokenizer.decode([number]) for number in ids]
    assert chat.output_ids(pieces, "", None, len(ids)) == (ids, True)
    with pytest.raises(CommandError, match=r"--turns 4 with --max-tokens 5000 .*8192; lower one"):
        chat.check_fits(turns=4, max_tokens=5000, context=8192)
    monkeypatch.setattr(demo_chat, "build_prefix", lambda: "a b")
    with pytest.raises(CommandError, match=r"the shared prefix is \d+ tokens for this tokenizer, 3000 are needed"):
        chat.check_fits(turns=1, max_tokens=1, context=8192)
