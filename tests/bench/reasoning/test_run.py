"""One run from its flags to the summary."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bench.reasoning import __main__ as reasoning
from bench.reasoning.data import arithmetic

from .conftest import Stub, arguments, lim_info, records, summary_of, write

FLAGS = {
    "server-without-scheme": (["--server", "localhost:30000"], "'localhost:30000' is not a URL"),
    "data-without-kind": (["--launch", "--data", "d"], "--data and --kind belong together"),
    "budget-without-launch": (["--server", "http://x", "--budget", "9"], "are for --launch"),
    "budget-of-dense": (["--launch", "--launch-backend", "torch_native", "--budget", "9"], "has none"),
    "no-samples": (["--launch", "--samples", "0"], "'0' is not a whole number above 0"),
    "cold": (["--launch", "--temperature", "-1"], "-1 is not a number from 0"),
    "nan": (["--launch", "--temperature", "nan"], "nan is not a number from 0"),
    "top-p-zero": (["--launch", "--top-p", "0"], "0 is not a number above 0 to 1"),
    "no-time": (["--launch", "--request-timeout", "0"], "0 is not a number above 0"),
}


@pytest.mark.parametrize(("argv", "said"), FLAGS.values(), ids=FLAGS.keys())
def test_flags_that_cannot_work(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        reasoning.parse([*argv, "--out", "o"])
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_run_asks_grades_records_and_sums_up(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = {p.prompt: p.expected for p in arithmetic(6, 3)}
    first = next(iter(right))
    stub.reply = lambda body: (200, f"So \\boxed{{{right[p := body['messages'][0]['content']]}{'9' * (p == first)}}}")
    reasoning.main(arguments(stub, tmp_path, "--samples", "3", "--seed", "3", "--top-p", "0.9", "--max-tokens", "99"))

    assert len(stub.asked) == 18
    assert {(b["model"], b["temperature"], b["top_p"], b["max_tokens"]) for b in stub.asked} == {("stub", 0.6, 0.9, 99)}
    seeds = {body["seed"] for body in stub.asked}
    assert len(seeds) == 18
    assert all(0 <= seed < 2**31 for seed in seeds)
    found = records(tmp_path)
    assert {(r["problem"], r["sample"]) for r in found} == {
        (f"arithmetic-{n}", k) for n in range(1, 7) for k in range(3)
    }
    assert {r["seed"] for r in found} == seeds
    assert {r["problem"]: r["correct"] for r in found} == {f"arithmetic-{n}": n > 1 for n in range(1, 7)}
    assert all(r["text"].startswith("So ") and r["completion_tokens"] == 11 and r["error"] is None for r in found)
    summary = summary_of(tmp_path)
    assert summary["figures"]["accuracy"] == summary["figures"]["majority_vote"] == pytest.approx(5 / 6)
    assert (summary["server"]["version"], summary["server"]["lim"]) == ("stub", None)
    shown = capsys.readouterr().out
    assert "83.3% ± 16.7%" in shown
    assert "layer role" not in shown


@pytest.mark.parametrize(
    ("content", "reasoning_content"), [("", r"I think \boxed{3}"), ("Answer: 3", r"Is it \boxed{4}?")]
)
def test_reasoning_that_the_server_tells_apart_is_part_of_the_text(
    stub: Stub, tmp_path: Path, content: str, reasoning_content: str
) -> None:
    """What is answered counts, and what was thought where nothing is."""
    stub.reply = lambda body: (200, {"content": content, "reasoning_content": reasoning_content})
    data = write(tmp_path / "d", {"problem": "P", "answer": 3})
    reasoning.main([*arguments(stub, tmp_path / "o"), "--data", str(data), "--kind", "aime", "--max-tokens", "9"])
    (found,) = records(tmp_path / "o")
    assert (found["extracted"], found["correct"]) == ("3", True)


def test_a_lim_server_is_told_with_what_it_read_during_the_run(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.info = lim_info(1000)

    def reply(_: dict[str, Any]) -> tuple[int, str]:
        stub.info = lim_info(1234)
        return 200, "1"

    stub.reply = reply
    reasoning.main(arguments(stub, tmp_path))
    summary = summary_of(tmp_path)
    assert summary["lim_tokens_this_sitting"]["attended"]["sparse"] == 234
    assert summary["server"]["lim"]["counters"]["attended_tokens"]["sparse"] == 1234
    assert summary["settings"]["lim"] == {"budget": 64, "select_layers": [2, 6]}
    shown = capsys.readouterr().out
    assert "budget 64" in shown
    assert re.search(r"SPARSE .* 6 .* 234 .* 468 .* 50.0%", shown)
