"""The parts of the demo that need no server: text, ids, agreement, tables, flags, exit codes."""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lim_sglang.commands.demo import chat as demo_chat
from lim_sglang.commands.demo import command as demo
from lim_sglang.commands.demo.chat import QUESTION_TOKENS, Chat, DemoError, build_prefix, question, unambiguous
from lim_sglang.commands.demo.command import run_demo
from lim_sglang.commands.demo.report import (
    Turn,
    count_agreement,
    role_rows,
    role_table,
    turn_rows,
    turn_table,
)
from lim_sglang.servers.embedded_model import is_complete, model_dir
from lim_sglang.servers.process import ServerError
from lim_sglang.servers.state import counted_since

from ...recorded_state import LIM_AFTER, LIM_BEFORE


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(words)


# Text


def test_prefix_is_the_same_each_time_also_in_another_process() -> None:
    code = "import sys; from lim_sglang.commands.demo.chat import build_prefix; sys.stdout.write(build_prefix())"
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


def test_questions_differ_and_start_with_a_new_case() -> None:
    assert question(0).startswith("Solve a new case")
    assert len({question(turn) for turn in range(4)}) == 4


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


# Stream


def chunk(text: str | None = None, piece: str | None = None, **finish: Any) -> SimpleNamespace:
    logprobs = None if piece is None else SimpleNamespace(content=[SimpleNamespace(token=piece)])
    facts = {"finish_reason": None, "logprobs": logprobs, "delta": SimpleNamespace(content=text)} | finish
    return SimpleNamespace(choices=[SimpleNamespace(**facts)], usage=None)


def test_stream_is_collected_and_printed_as_it_is() -> None:
    usage = SimpleNamespace(prompt_tokens=5, completion_tokens=3, prompt_tokens_details=None)
    end = chunk(finish_reason="stop", matched_stop=2)
    stream = [
        chunk(""),
        chunk("[b]1", "[b]1"),
        chunk(" + 1\n", " + 1\n"),
        end,
        SimpleNamespace(choices=[], usage=usage),
    ]
    screen, firsts = io.StringIO(), []
    answer = demo._read_stream(stream, lambda: firsts.append(screen.getvalue()), Console(file=screen))
    assert answer.text == "[b]1 + 1\n"
    assert answer.pieces == ["[b]1", " + 1\n"]
    assert (answer.stop_id, answer.usage) == (2, usage)
    assert firsts[0] == ""
    assert screen.getvalue() == "[b]1 + 1\n\n"


# Agreement


def generate_answer(given: list[int], best: list[int]) -> dict[str, Any]:
    """The shape of SGLang's /generate answer, whose first entry belongs to the prompt's last token."""
    return {
        "meta_info": {
            "input_token_logprobs": [[None, 99, None], *([-0.5, token, None] for token in given)],
            "input_top_logprobs": [None, *([[-0.1, token, None]] for token in best)],
        }
    }


def test_agreement_counts_equal_positions() -> None:
    assert count_agreement(generate_answer([4, 5, 6], [4, 7, 6]), [4, 5, 6]) == 2
    assert count_agreement(generate_answer([4], [4]), [4]) == 1


@pytest.mark.parametrize("generated", [[4, 5], [4, 5, 7], [4, 5, 6, 6]])
def test_agreement_over_other_tokens_is_refused(generated: list[int]) -> None:
    with pytest.raises(DemoError, match="the dense server scored 3 tokens"):
        count_agreement(generate_answer([4, 5, 6], [4, 5, 6]), generated)


# Tables


def test_turn_rows() -> None:
    exact = Turn(prompt_ids=[0] * 3528, output_ids=[0] * 41, cached_tokens=0, decode_seconds=2.0, text="")
    remade = Turn(
        prompt_ids=[0] * 3600, output_ids=[0] * 3, cached_tokens=3568, decode_seconds=0.0, text="", exact=False
    )
    assert turn_rows([exact, remade], [40, 3]) == [
        ("1", "3,528", "0", "41", "20.0", "40/41 (98%)"),
        ("2", "3,600", "3,568", "3", "0.0", "~3/3 (100%)"),
    ]


def test_role_rows_are_the_difference_of_two_states() -> None:
    assert role_rows(LIM_AFTER["plan"], counted_since(LIM_BEFORE, LIM_AFTER)) == [
        ("DENSE", "2", "80,000", "80,000", "100.0%"),
        ("SELECT", "2", "80,000", "80,000", "100.0%"),
        ("SPARSE", "26", "133,120", "1,040,000", "12.8%"),
        ("all", "30", "293,120", "1,200,000", "24.4%"),
    ]


def test_role_rows_without_decode() -> None:
    assert [row[4] for row in role_rows(LIM_AFTER["plan"], counted_since(LIM_AFTER, LIM_AFTER))] == ["-"] * 4


def test_tables_fit_80_columns() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80)
    turn = Turn(prompt_ids=[0] * 8000, output_ids=[0] * 160, cached_tokens=7800, decode_seconds=1.0, text="")
    console.print(turn_table([turn], [160]))
    console.print(role_table(role_rows(LIM_AFTER["plan"], counted_since(LIM_BEFORE, LIM_AFTER))))
    assert "160/160 (100%)" in screen.getvalue()
    assert "…" not in screen.getvalue()
    assert max(len(line) for line in screen.getvalue().splitlines()) <= 80


# Flags, machine, exit codes


def test_defaults() -> None:
    args = arguments()
    assert (args.budget, args.turns, args.max_tokens, args.model_path, args.quiet) == (512, 4, 160, None, False)


@pytest.mark.parametrize("value", ["0", "-3", "x", "1.5", ""])
def test_numbers_must_be_positive(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(f"--turns={value}")
    assert f"{value!r} is not a whole number above 0" in capsys.readouterr().err


def finish(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> int:
    def run(args: argparse.Namespace, logs: Path) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(demo, "_run", run)
    return run_demo(arguments())


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "lim-sglang-demo-1"
    folder.mkdir()
    monkeypatch.setattr(demo.tempfile, "mkdtemp", lambda **_: str(folder))
    return folder


def test_success_leaves_no_logs(monkeypatch: pytest.MonkeyPatch, logs: Path) -> None:
    assert finish(monkeypatch, None) == 0
    assert not logs.exists()


def test_ctrl_c_is_130_and_one_line(
    monkeypatch: pytest.MonkeyPatch, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finish(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "lim-sglang: interrupted; nothing is left running\n"
    assert not logs.exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DemoError("no\nway"), "lim-sglang: error: no way (server logs: {logs})"),
        (
            ServerError("the server ended: x (log: {logs}/lim.log)"),
            "lim-sglang: error: the server ended: x (log: {logs}/",
        ),
        (OSError("disk"), "lim-sglang: error: OSError: disk (server logs: {logs})"),
    ],
)
def test_failure_is_one_line_with_the_log(
    monkeypatch: pytest.MonkeyPatch, logs: Path, capsys: pytest.CaptureFixture[str], error: Exception, expected: str
) -> None:
    named = type(error)(str(error).format(logs=logs))
    assert finish(monkeypatch, named) == 1
    line = capsys.readouterr().err
    assert line.startswith(expected.format(logs=logs))
    assert line.count("\n") == 1
    assert logs.exists()


def test_model_path_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=re.escape(f"--model-path {tmp_path} holds no config.json")):
        demo._model_folder(arguments("--model-path", str(tmp_path)))
