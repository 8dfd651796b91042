"""What the demo says: the shared prefix, the questions, and token ids read back from streamed pieces."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from lim_sglang.tools.demo import chat as demo_chat
from lim_sglang.tools.demo.chat import QUESTION_TOKENS, Chat, DemoError, build_prefix, question, unambiguous
from lim_sglang.tools.servers.embedded_model import is_complete, model_dir


def test_prefix_is_the_same_each_time_also_in_another_process() -> None:
    code = "import sys; from lim_sglang.tools.demo.chat import build_prefix; sys.stdout.write(build_prefix())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == build_prefix()


def test_prefix_arithmetic_is_right() -> None:
    sums = re.findall(r"(\d+(?: (?:\+|-|\*|//) \d+)+) = (\d+)", build_prefix(200))
    assert len(sums) == 400
    assert [expression for expression, value in sums if eval(expression) != int(value)] == []


def test_prefix_names_differ_within_a_case() -> None:
    for case in build_prefix(200).split("\n\n"):
        people = set(re.findall(r"Ada|Ben|Cleo|Dan|Eve", case))
        lamps = set(re.findall(r"the (\w+) lamp", case))
        assert len(people) in (0, 3)
        assert len(lamps) in (0, 3)


# Token ids


class WordTokenizer:
    """One token per word; the template adds one token per message and one for the answer."""

    words = ("<end>", "a", "b", "�", "�")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [self.words.index(word) for word in text.split()]

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> list[int]:
        return [1] * sum(1 + len(m["content"].split()) for m in messages) + [1] * options["add_generation_prompt"]


@pytest.fixture
def chat() -> Chat:
    return Chat(WordTokenizer(), unambiguous(WordTokenizer.words))


def test_unambiguous_leaves_out_what_tokens_share() -> None:
    assert unambiguous(["x", "?", "y", "?"]) == {"x": 0, "y": 2}


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
    chat: Chat, pieces: list[str], text: str, stop_id: int | None, count: int, expected: tuple[list[int], bool]
) -> None:
    assert chat.output_ids(pieces, text, stop_id, count) == expected


def test_conversation_that_could_outgrow_the_context_is_refused(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_chat, "MIN_PREFIX_TOKENS", 1000)
    chat.check_fits(turns=4, max_tokens=160, context=8192)
    with pytest.raises(DemoError, match=r"--turns 4 with --max-tokens 5000 .*8192; lower one"):
        chat.check_fits(turns=4, max_tokens=5000, context=8192)


def test_short_prefix_is_refused(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_chat, "build_prefix", lambda: "a b")
    with pytest.raises(DemoError, match="the shared prefix is 3 tokens for this tokenizer, 3000 are needed"):
        chat.check_fits(turns=1, max_tokens=1, context=8192)


def test_prefix_and_context_with_the_real_tokenizer() -> None:
    if not is_complete(model_dir()):
        pytest.skip("the embedded model has not been made; run `lim-sglang model`")
    chat = Chat.load(model_dir())
    chat.check_fits(turns=4, max_tokens=160, context=8192)
    assert 3200 <= len(chat.render(Chat.opening(), answer=False)) <= 4000
    for turn in range(4):
        messages = [{"role": "user", "content": question(turn)}]
        assert len(chat.render(messages)) < QUESTION_TOKENS
    ids = chat.tokenizer.encode("Step 1: 5 * 12 = 60 crates.")
    pieces = [chat.tokenizer.decode([number]) for number in ids]
    assert chat.output_ids(pieces, "", None, len(ids)) == (ids, True)
