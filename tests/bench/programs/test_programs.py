"""The frontend programs' own arithmetic, flags and files; nothing here needs a server."""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.programs import results
from bench.programs.__main__ import PROGRAMS, in_parallel, parse
from bench.programs.calculator import CalculatorError, calculate
from bench.programs.common import Outcome, execute, reason_of, whole
from bench.programs.compare import agreement
from bench.programs.metering import (
    MeteredEndpoint,
    ProgramError,
    Request,
    check_finished,
    connect,
    decode_seconds,
    decode_speed,
)
from bench.programs.self_consistency import last_number, majority
from bench.programs.tool_loop import use_tool

ROOT = Path(__file__).parents[3]


# Votes


def test_the_most_frequent_answer_wins() -> None:
    assert majority(["7", "9", "9", None, "7", "9"]) == ("9", {"7": 2, "9": 3})


def test_of_equally_frequent_answers_the_first_given_wins() -> None:
    assert majority(["3", "5", "5", "3"])[0] == "3"
    assert majority(["5", "3", "3", "5"])[0] == "5"


def test_no_answer_has_no_vote() -> None:
    assert majority([None, None, "4", None]) == ("4", {"4": 1})
    assert majority([None]) == (None, {})


@pytest.mark.parametrize(
    ("text", "found"),
    [(" 12 crates", "12"), ("1 + 2 = 3.", "3"), ("1,200 left", "1200"), ("-07", "-7"), ("none", None), ("1,2", "2")],
)
def test_the_last_number_of_a_text(text: str, found: str | None) -> None:
    assert last_number(text) == found


# Calculator

RIGHT = {
    "12 * 30": "360",
    "2 + 3 * 4": "14",
    "(2 + 3) * -4": "-20",
    "9 - 4 - 3": "2",
    "7 / 2": "3.5",
    "8 / 2": "4",
    "7 // 2": "3",
    "-7 % 3": "2",
    "1.5 + 1": "2.5",
    "1 / 3": "0.3333333333",
    " 4 ": "4",
}


@pytest.mark.parametrize(("text", "value"), RIGHT.items())
def test_the_calculator_is_right(text: str, value: str) -> None:
    assert calculate(text) == value


REFUSED = {
    "__import__('os').system('true')": "not arithmetic",
    "open('x')": "not arithmetic",
    "(1).real": "not arithmetic",
    "x + 1": "not arithmetic",
    "'a' * 9": "not arithmetic",
    "True + 1": "not arithmetic",
    "[1][0]": "not arithmetic",
    "1 if 1 else 2": "not arithmetic",
    "9 ** 9": "not arithmetic",
    "1 << 60": "not arithmetic",
    "2j": "not arithmetic",
    "": "not arithmetic",
    "1 +": "not arithmetic",
    "\0": "not arithmetic",
    "1 / 0": "division by zero",
    "5 % 0": "division by zero",
    "99999999 * 99999999": "a number above",
    "1e400": "a number above",
    "1e400 - 1e400": "a number above",
    "(" * 150 + "1" + ")" * 49: "not arithmetic",
    "1+" * 150 + "1": "longer than 200",
}


@pytest.mark.parametrize(("text", "why"), REFUSED.items())
def test_the_calculator_refuses(text: str, why: str) -> None:
    with pytest.raises(CalculatorError, match=why):
        calculate(text)


def test_the_model_reads_the_result_or_the_refusal() -> None:
    assert use_tool("25 * 81") == " = 2025"
    assert use_tool("25 times 81") == " failed: not arithmetic."


# Agreement


def test_agreement_is_the_share_before_the_first_difference_of_a_chain() -> None:
    assert agreement([["abcd", "efgh"]], [["abcd", "efgh"]]) == 1.0
    assert agreement([["abcd", "efgh"]], [["abcd", "efXh"]]) == 6 / 8
    # What follows a difference does not count, equal or not.
    assert agreement([["abcd", "efgh"]], [["Xbcd", "efgh"]]) == 0.0


def test_chains_are_independent() -> None:
    assert agreement([["abcd"], ["efgh"]], [["Xbcd"], ["efgh"]]) == 0.5


def test_a_text_that_ends_earlier_ends_the_agreement() -> None:
    assert agreement([["ab", "ef"]], [["abcd", "ef"]]) == 2 / 6


def test_what_only_one_has_counts_as_different() -> None:
    assert agreement([["ab"], ["cd"]], [["ab"]]) == 0.5
    assert agreement([["ab"]], [["ab", "cd"]]) == 0.5
    assert agreement([], []) == 1.0


# Figures


def request(first: float | None, ended: float, tokens: int, **counts: int) -> Request:
    prompt, cached = counts.get("prompt", 10), counts.get("cached", 4)
    return Request("prefix" if first is None else "generate", prompt, cached, tokens, 0.0, first, ended)


def test_decode_time_is_that_in_which_any_request_decodes() -> None:
    requests = [request(1, 3, 5), request(2, 5, 7), request(7, 8, 2), request(None, 100, 0)]
    assert decode_seconds(requests) == 5
    assert decode_speed(requests) == (4 + 6 + 1) / 5
    assert decode_speed([request(1, 1, 1), request(None, 9, 0)]) is None


def test_attended_share_takes_all_roles_together() -> None:
    counted = {"attended": {"dense": 10, "sparse": 30}, "context": {"dense": 10, "sparse": 70}}
    assert results.attended_share(counted) == 0.5
    assert results.attended_share({"attended": {"dense": 0}, "context": {"dense": 0}}) is None


def rows() -> list[results.Row]:
    requests = [request(1, 3, 5), request(None, 4, 0, prompt=90, cached=46)]
    dense, lim = (Outcome(answer, [["abcd"], [text]], "", {}) for answer, text in (("7", "efgh"), ("8", "efXh")))
    return [
        results.make_row(("chain", "dense", 0), requests, 2.5, None, dense),
        results.compared(results.make_row(("chain", "lim", 0), requests, 3.5, 0.25, lim), lim, dense),
        results.make_row(("documents", "lim", 0), [], 1.0, None, "the server refused: too long, much"),
    ]


def test_files_hold_every_row(tmp_path: Path) -> None:
    results.write(tmp_path / "new" / "folder", rows(), {"about": {"gpu": "none"}})
    with (tmp_path / "new" / "folder" / results.CSV).open() as file:
        dense, lim, failed = csv.DictReader(file)
    assert (dense["prompt_tokens"], dense["cached_tokens"], dense["generated_tokens"]) == ("100", "50", "5")
    assert (dense["agreement"], dense["same_answer"], dense["decode_tokens_per_s"]) == ("", "", "2.0")
    assert (lim["agreement"], lim["same_answer"], lim["attended_share"]) == ("0.75", "False", "0.25")
    assert (failed["status"], failed["reason"]) == ("failed", "the server refused: too long, much")
    stored = json.loads((tmp_path / "new" / "folder" / results.JSON).read_text())
    assert stored["about"] == {"gpu": "none"}
    assert [row["answer"] for row in stored["rows"]] == ["7", "8", ""]


def test_the_table_sums_repeats_and_names_failures() -> None:
    again = [replace(rows()[1], repeat=1, agreement=0.25, same_answer=True, attended_share=0.75)]
    console = Console(width=140)
    with console.capture() as captured:
        console.print(results.table([*rows(), *again]))
    lines = {tuple(line.split("│")[1:3]): line.split("│")[3:] for line in captured.get().splitlines() if "│" in line}
    cells = {tuple(part.strip() for part in key): [cell.strip() for cell in line] for key, line in lines.items()}
    assert cells["chain", "dense"][:8] == ["5", "100", "50%", "2.5", "2.0", "-", "-", "-"]
    assert cells["chain", "lim"][:8] == ["10", "200", "50%", "7.0", "2.0", "50.0%", "50%", "1/2"]
    assert cells["documents", "lim"][0] == "failed"


# One bounded run


class Doing:
    """A program that does what it is made with."""

    def __init__(self, body: Any) -> None:
        self.body = body

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, endpoint: MeteredEndpoint, args: argparse.Namespace, show: Any) -> Outcome:
        self.body(endpoint)
        return Outcome("done", [], "")


def unconnected() -> MeteredEndpoint:
    endpoint = MeteredEndpoint.__new__(MeteredEndpoint)
    endpoint._start_over()
    return endpoint


def limit(seconds: float) -> argparse.Namespace:
    return argparse.Namespace(time_limit=seconds)


def test_a_program_that_ends_has_an_outcome() -> None:
    assert execute(Doing(lambda _: None), unconnected(), limit(30)).answer == "done"


def test_a_program_that_never_ends_is_given_up() -> None:
    endpoint, began = unconnected(), time.monotonic()
    with pytest.raises(ProgramError, match=r"not finished after 0\.2 s; fix: a larger --time-limit"):
        execute(Doing(lambda _: threading.Event().wait()), endpoint, limit(0.2))
    assert time.monotonic() - began < 10
    assert endpoint.cancelled


def test_a_failed_request_is_told_though_its_program_waits_forever() -> None:
    def body(endpoint: MeteredEndpoint) -> None:
        with pytest.raises(ConnectionResetError), endpoint._noting_failure():
            raise ConnectionResetError("reset by peer")
        threading.Event().wait()  # as SGLang does for a state whose thread has died

    with pytest.raises(ProgramError, match="the server no longer answers: reset by peer"):
        execute(Doing(body), unconnected(), limit(60))


def test_the_first_failure_is_the_one_told() -> None:
    def body(endpoint: MeteredEndpoint) -> None:
        for error in (RuntimeError({"error": {"message": "too\nlong"}}), KeyError("text")):
            with pytest.raises(type(error)), endpoint._noting_failure():
                raise error
        raise KeyError("answer")

    with pytest.raises(ProgramError, match=r"^the server refused: too long$"):
        execute(Doing(body), unconnected(), limit(60))


def test_a_mistake_of_the_program_itself_is_told() -> None:
    with pytest.raises(ProgramError, match="ZeroDivisionError"):
        execute(Doing(lambda _: 1 // 0), unconnected(), limit(60))


def test_a_generation_must_have_finished() -> None:
    check_finished({"finish_reason": {"type": "length", "length": 4}})
    for meta in (None, {}, {"finish_reason": None}, {"finish_reason": {"type": "abort", "message": "out of memory"}}):
        with pytest.raises(ProgramError, match="broke a generation off"):
            check_finished(meta)


def test_reasons_are_one_line() -> None:
    assert reason_of(ValueError("a\n  b")) == "ValueError: a b"
    assert reason_of(RuntimeError({"object": "error"})) == "the server refused: {'object': 'error'}"


def test_jobs_run_a_few_at_a_time() -> None:
    running, most, seen = set(), [0], []

    def work(job: tuple[str, int]) -> Any:
        running.add(job)
        most[0] = max(most[0], len(running))
        time.sleep(0.02)
        running.discard(job)
        return job

    in_parallel([("a", number) for number in range(12)], 3, work, seen.append)
    assert sorted(seen) == [("a", number) for number in range(12)]
    assert most[0] == 3


def test_a_mistake_of_the_runner_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        in_parallel([("a", 0)], 2, lambda job: 1 // 0, lambda row: None)  # type: ignore[arg-type,return-value]


# Flags

MISTAKES = {
    "no server": ([], "one of the arguments --server --launch is required"),
    "unknown program": (["--launch", "--programs", "chain,foo"], "'foo' is no program; fix: some of chain,"),
    "zero tokens": (["--launch", "--max-tokens", "0"], "--max-tokens: '0' is not a whole number from 1 to 1048576"),
    "hot": (["--launch", "--temperature", "3"], "--temperature: '3' is not a number from 0 to 2"),
    "nan": (["--launch", "--time-limit", "nan"], "'nan' is not a number from 0.1 to 86400"),
    "word": (["--launch", "--paths", "five"], "--paths: 'five' is not a whole number from 2 to 256"),
    "no URL": (["--server", "localhost:30000"], "'localhost:30000' is not a URL; fix: give one such as http://"),
    "bad port": (["--server", "http://localhost:99999"], "is not a URL"),
    "budget of a running server": (["--server", "http://h:1", "--budget", "64"], "are for --launch; fix: leave them"),
    "dense server of a launch": (["--launch", "--dense-server", "http://h:1"], "--dense-server is for --server"),
    "unknown flag": (["--launch", "--path"], "--path"),
}


@pytest.mark.parametrize(("flags", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_costs_one_line(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(flags)
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_flags_have_their_defaults() -> None:
    args = parse(["--server", "http://127.0.0.1:30000/v1/", "--programs", "documents, chain,chain"])
    assert args.server == "http://127.0.0.1:30000"
    assert args.programs == ["documents", "chain"]
    assert parse(["--launch"]).programs == list(PROGRAMS)


def test_whole_numbers_include_their_ends() -> None:
    assert [whole(-2, 3)(text) for text in ("-2", "3")] == [-2, 3]
    for text in ("-3", "4", "", "1.0", "٣", "--1"):
        with pytest.raises(argparse.ArgumentTypeError):
            whole(-2, 3)(text)


@pytest.mark.parametrize("name", ["", *(f".{name}" for name in PROGRAMS)])
def test_every_program_has_its_own_help(name: str) -> None:
    command = [sys.executable, "-m", f"bench.programs{name}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"python -m bench.programs{name} --" in done.stdout
    assert "--time-limit" in done.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_stay_short(name: str) -> None:
    assert len((ROOT / "bench" / "programs" / f"{name}.py").read_text().splitlines()) < 80


def test_nothing_at_the_url_costs_one_line() -> None:
    with pytest.raises(ProgramError, match=r"^no server answers at http://127\.0\.0\.1:9 \(.*\); fix: start it"):
        connect("http://127.0.0.1:9")
