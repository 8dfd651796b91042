"""The reasoning benchmark: figures, a run that can be taken up again, and requests that fail."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.reasoning import __main__ as reasoning
from bench.reasoning import requests as reasoning_requests
from bench.reasoning.data import arithmetic
from bench.reasoning.grade import is_correct
from bench.reasoning.results import Sample, busy_seconds, figures

COMMAND = [sys.executable, "-m", "bench.reasoning"]
DEADLINE = 60.0

# Figures


def sample(problem: str, number: int, extracted: str | None, expected: str = "1", **other: Any) -> Sample:
    facts: dict[str, Any] = {"seed": 0, "prompt_tokens": 5, "completion_tokens": 10, "finish_reason": "stop"}
    facts |= {"correct": is_correct(extracted, expected, "aime"), "started": 0.0, "seconds": 1.0, "text": ""} | other
    return Sample(problem=problem, sample=number, extracted=extracted, expected=expected, **facts)


def test_figures() -> None:
    failed = {"correct": None, "completion_tokens": None, "finish_reason": None, "error": "500"}
    samples = [
        sample("a", 2, "2", completion_tokens=40, finish_reason="length", started=10.0, seconds=2.0),
        sample("a", 0, "1"),
        sample("a", 1, "1.0", started=0.5),
        sample("b", 0, None, completion_tokens=20),
        sample("b", 1, "1", started=11.0, seconds=4.0),
        sample("c", 0, "2"),
        sample("c", 1, "1"),
        sample("d", 0, None, started=20.0, seconds=3.0, **failed),
    ]
    found = figures(samples, "aime")
    assert (found["problems"], found["samples"], found["errors"]) == (3, 7, 1)
    assert found["accuracy"] == found["pass_at_1"] == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)
    assert found["accuracy_standard_error"] == pytest.approx(1 / 6 / 3)  # deviations 1/9, -1/18, -1/18
    assert found["majority_vote"] == pytest.approx(2 / 3)  # a and b; in c the first of two is wrong
    assert found["without_answer"] == 1
    assert (found["mean_tokens"], found["median_tokens"], found["max_tokens"]) == (pytest.approx(110 / 7), 10, 40)
    assert found["at_maximum_length"] == pytest.approx(1 / 7)
    assert found["seconds"] == 1.5 + 5.0 + 3.0  # 0 to 1.5, 10 to 15, 20 to 23
    assert found["tokens_per_second"] == pytest.approx(110 / 9.5)


def test_figures_of_nothing() -> None:
    found = figures([], "aime")
    assert found["samples"] == 0
    assert found["accuracy"] is found["tokens_per_second"] is found["at_maximum_length"] is None
    assert busy_seconds([]) == 0


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# A server that answers as it is told


class Stub:
    """An OpenAI-compatible server in threads of this process, which keeps what it was asked.

    Attributes:
        reply: body of a chat request -> HTTP status and text of the answer; may block.
        asked: bodies of all chat requests.
        most: highest number of chat requests that were open at once.
    """

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any]], tuple[int, str]] = lambda body: (200, r"\boxed{1}")
        self.asked: list[dict[str, Any]] = []
        self.info: dict[str, Any] = {"version": "stub", "attention_backend": "stub"}
        self.models: object = {"data": [{"id": "stub", "max_model_len": 4096}]}
        self.message: dict[str, str] = {}
        self.in_flight = self.most = 0
        self.changed = threading.Condition()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def _handler(stub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                bodies = {"/v1/models": stub.models, "/server_info": stub.info}
                self.send(200 if self.path in bodies else 404, bodies.get(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub.changed:
                    stub.asked.append(body)
                    stub.in_flight += 1
                    stub.most = max(stub.most, stub.in_flight)
                    stub.changed.notify_all()
                try:
                    status, text = stub.reply(body)
                finally:
                    with stub.changed:
                        stub.in_flight -= 1
                        stub.changed.notify_all()
                self.send(status, stub.completion(text) if status == 200 else {"message": text})

            def send(self, status: int, body: object) -> None:
                data = json.dumps(body).encode()
                with suppress(BrokenPipeError, ConnectionResetError):  # the client was killed, or gave up
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        return Handler

    def completion(self, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text} | self.message
        usage = {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "stub",
            "choices": [choice],
            "usage": usage,
        }

    def prompts(self) -> list[str]:
        return sorted(body["messages"][0]["content"] for body in self.asked)

    def wait(self, reached: Callable[[], bool], timeout: float = DEADLINE) -> bool:
        with self.changed:
            return self.changed.wait_for(reached, timeout)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    server.http.daemon_threads = True
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.close()
    thread.join(DEADLINE)


def arguments(stub: Stub, out: Path, *more: str) -> list[str]:
    return ["--server", stub.url, "--out", str(out), "--problems", "6", *more]


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def refused(argv: Sequence[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    """The one error line of a run that ends with ``code``."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        reasoning.main(argv)
    stderr = capsys.readouterr().err
    lines = [line for line in stderr.splitlines() if line.startswith("lim-sglang: error: ")]
    assert ended.value.code == code, stderr
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


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
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["figures"]["accuracy"] == summary["figures"]["majority_vote"] == pytest.approx(5 / 6)
    assert summary["server"]["version"] == "stub"
    assert summary["server"]["lim"] is None
    shown = capsys.readouterr().out
    assert "83.3% ± 16.7%" in shown
    assert "layer role" not in shown


def test_reasoning_that_the_server_tells_apart_is_part_of_the_text(stub: Stub, tmp_path: Path) -> None:
    stub.message = {"content": "", "reasoning_content": r"I think \boxed{3}"}
    data = write(tmp_path / "d", {"problem": "P", "answer": 3})
    reasoning.main([*arguments(stub, tmp_path / "o"), "--data", str(data), "--kind", "aime", "--max-tokens", "9"])
    (found,) = records(tmp_path / "o")
    assert (found["extracted"], found["correct"]) == ("3", True)


LIM = {
    "config": {"budget": 64, "recency_ratio": 0.25, "sink_tokens": 4, "select_layers": "auto"},
    "plan": {"dense": 2, "select": 2, "sparse": 6, "select_layers": [2, 6]},
}


def lim_info(attended: int, **config: Any) -> dict[str, Any]:
    tokens = {"dense": attended, "select": attended, "sparse": attended}
    counters = {"attended_tokens": tokens, "context_tokens": {role: 2 * n for role, n in tokens.items()}}
    state = LIM | {"config": LIM["config"] | config, "counters": counters}
    return {"version": "stub", "attention_backend": "lim", "internal_states": [{"lim": state}]}


def test_a_lim_server_is_told_with_what_it_read_during_the_run(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.info = lim_info(1000)

    def reply(_: dict[str, Any]) -> tuple[int, str]:
        stub.info = lim_info(1234)
        return 200, "1"

    stub.reply = reply
    reasoning.main(arguments(stub, tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["lim_tokens_this_sitting"]["attended"]["sparse"] == 234
    assert summary["server"]["lim"]["counters"]["attended_tokens"]["sparse"] == 1234
    assert summary["settings"]["lim"] == LIM["config"] | {"select_layers": [2, 6]}
    shown = capsys.readouterr().out
    assert "budget 64" in shown
    assert re.search(r"SPARSE .* 6 .* 234 .* 468 .* 50.0%", shown)


# Taken up again


@contextmanager
def run_with_three_answers(stub: Stub, out: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own, of six problems, whose first three samples are finished; the others hang."""
    gate, answered = threading.Event(), threading.Semaphore(3)

    def reply(_: dict[str, Any]) -> tuple[int, str]:
        if not answered.acquire(blocking=False):
            gate.wait(DEADLINE)
        return 200, r"\boxed{1}"

    stub.reply = reply
    command = [*COMMAND, *arguments(stub, out, "--concurrency", "2")]
    # A shell that starts us in the background has us ignore SIGINT; a terminal does not.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert stub.wait(lambda: len(stub.asked) == 5), process.poll()
        assert len(records(out)) == 3  # a sample is in the file before the next one is asked for
        yield process
    finally:
        process.kill()
        process.communicate()
        gate.set()


def run_again(stub: Stub, out: Path) -> list[str]:
    """What a second run of the same command asks for."""
    assert stub.wait(lambda: stub.in_flight == 0)
    stub.asked.clear()
    reasoning.main(arguments(stub, out))
    return stub.prompts()


def missing_prompts(done: Sequence[dict[str, Any]]) -> list[str]:
    finished = {record["problem"] for record in done}
    return sorted(problem.prompt for problem in arithmetic(6, 0) if problem.id not in finished)


def test_a_killed_run_is_taken_up_where_it_stopped(stub: Stub, tmp_path: Path) -> None:
    with run_with_three_answers(stub, tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE)
    done = records(tmp_path)
    assert run_again(stub, tmp_path) == missing_prompts(done)
    assert records(tmp_path)[:3] == done
    assert sorted(r["problem"] for r in records(tmp_path)) == [f"arithmetic-{n}" for n in range(1, 7)]
    assert json.loads((tmp_path / "summary.json").read_text())["figures"]["samples"] == 6
    assert run_again(stub, tmp_path) == []


def test_ctrl_c_says_in_one_line_how_to_go_on(stub: Stub, tmp_path: Path) -> None:
    with run_with_three_answers(stub, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("lim-sglang: error: ")]
    assert "interrupted" in line
    assert str(tmp_path) in line
    assert run_again(stub, tmp_path) == missing_prompts(records(tmp_path)[:3])


def test_a_half_written_line_is_dropped(stub: Stub, tmp_path: Path) -> None:
    reasoning.main(arguments(stub, tmp_path))
    path = tmp_path / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:-1])
    assert len(run_again(stub, tmp_path)) == 2
    assert sorted(r["problem"] for r in records(tmp_path)) == [f"arithmetic-{n}" for n in range(1, 7)]


def test_a_line_that_is_no_sample_is_named(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reasoning.main(arguments(stub, tmp_path))
    path = tmp_path / "samples.jsonl"
    path.write_text('{"problem": 1}\n' + path.read_text())
    line = refused(arguments(stub, tmp_path), capsys)
    assert "samples.jsonl, line 1 " in line
    assert "fix: delete that line" in line


CHANGED = {
    "temperature": (["--temperature", "0.7"], "temperature=0.6", "--temperature 0.6"),
    "samples": (["--samples", "2"], "samples=1", "--samples 1"),
    "max-tokens": (["--max-tokens", "99"], "max_tokens=256", "--max-tokens 256"),
    "problems": (["--problems", "5"], "problems=6", "--problems 6"),
    "seed": (["--seed", "1"], "seed=0", "--seed 0"),
}


@pytest.mark.parametrize(("changed", "recorded", "fix"), CHANGED.values(), ids=CHANGED.keys())
def test_other_settings_are_refused(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: list[str], recorded: str, fix: str
) -> None:
    reasoning.main(arguments(stub, tmp_path))
    before = (tmp_path / "samples.jsonl").read_bytes()
    stub.asked.clear()
    line = refused(arguments(stub, tmp_path, *changed), capsys)
    assert recorded in line
    assert f"fix: {fix}, or another --out" in line
    assert stub.asked == []
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_another_server_is_refused(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.info = lim_info(0)
    reasoning.main(arguments(stub, tmp_path))
    stub.info = lim_info(0, budget=128)
    assert 'lim={"budget": 64,' in refused(arguments(stub, tmp_path), capsys)
    stub.info = {"attention_backend": "torch_native"}
    assert 'attention_backend="lim", this server has "torch_native"' in refused(arguments(stub, tmp_path), capsys)


def test_other_problems_are_refused(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "d", {"problem": "P", "answer": 3})
    argv = [*arguments(stub, tmp_path / "o"), "--data", str(data), "--kind", "aime", "--max-tokens", "9"]
    reasoning.main(argv)
    write(data, {"problem": "Q", "answer": 3})
    assert "problems_sha256" in refused(argv, capsys)


def test_a_folder_in_use_is_refused(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_with_three_answers(stub, tmp_path):
        assert "another run is writing" in refused(arguments(stub, tmp_path, "--concurrency", "2"), capsys)


# Requests


@pytest.mark.parametrize("bound", [1, 3])
def test_never_more_requests_in_flight_than_allowed(stub: Stub, tmp_path: Path, bound: int) -> None:
    def reply(_: dict[str, Any]) -> tuple[int, str]:
        stub.wait(lambda: stub.most >= bound)
        stub.wait(lambda: stub.in_flight > bound, timeout=0.2)  # time for one too many to come
        return 200, "1"

    stub.reply = reply
    reasoning.main(arguments(stub, tmp_path, "--concurrency", str(bound)))
    assert len(stub.asked) == 6
    assert stub.most == bound


def test_failed_requests_are_repeated_recorded_and_not_graded(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = arithmetic(6, 0)
    right = {p.prompt: p.expected for p in problems}
    broken = problems[1].prompt

    def reply(body: dict[str, Any]) -> tuple[int, str]:
        prompt = body["messages"][0]["content"]
        return (500, "out of order") if prompt == broken else (200, right[prompt])

    stub.reply = reply
    reasoning.main(arguments(stub, tmp_path))
    assert stub.prompts().count(broken) == 3
    assert len(stub.asked) == 5 + 3
    (error,) = [r for r in records(tmp_path) if r["error"] is not None]
    assert error["problem"] == "arithmetic-2"
    assert "out of order" in error["error"]
    assert error["correct"] is None
    found = json.loads((tmp_path / "summary.json").read_text())["figures"]
    assert (found["samples"], found["errors"], found["accuracy"]) == (5, 1, 1.0)
    assert "the first with InternalServerError" in capsys.readouterr().out

    stub.reply = lambda body: (200, right[body["messages"][0]["content"]])
    assert run_again(stub, tmp_path) == [broken]
    assert "6 right, 0 failed" in capsys.readouterr().err
    found = json.loads((tmp_path / "summary.json").read_text())["figures"]
    assert (found["samples"], found["errors"], found["accuracy"]) == (6, 0, 1.0)


def test_a_request_that_works_at_the_second_attempt_is_no_error(stub: Stub, tmp_path: Path) -> None:
    stub.reply = lambda body: (503, "busy") if len(stub.asked) == 1 else (200, "1")
    reasoning.main(arguments(stub, tmp_path))
    assert [r["error"] for r in records(tmp_path)] == [None] * 6
    assert len(stub.asked) == 7


def test_a_request_has_a_time_limit(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = threading.Event()

    def reply(_: dict[str, Any]) -> tuple[int, str]:
        gate.wait(DEADLINE)
        return 200, "1"

    stub.reply = reply
    line = refused(arguments(stub, tmp_path, "--problems", "1", "--request-timeout", "0.2"), capsys)
    gate.set()
    assert "no sample could be graded" in line
    assert "APITimeoutError" in line
    assert len(stub.asked) == 3
    assert [r["correct"] for r in records(tmp_path)] == [None]


def test_a_request_that_is_refused_is_an_error(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.reply = lambda body: (400, "the prompt is too long")
    assert "the prompt is too long" in refused(arguments(stub, tmp_path), capsys)
    assert len(stub.asked) == 6


def test_the_servers_end_is_one_line_and_keeps_what_is_finished(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(_: dict[str, Any]) -> tuple[int, str]:
        if len(stub.asked) < 3:
            return 200, "1"
        stub.close()
        raise BrokenPipeError("the stub ends without an answer")

    stub.http.handle_error = lambda *_: None  # type: ignore[method-assign]
    stub.reply = reply
    line = refused(arguments(stub, tmp_path, "--concurrency", "1"), capsys)
    assert "no longer answers" in line
    assert [r["error"] for r in records(tmp_path)] == [None, None]


def test_no_server(tmp_path: Path, stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.close()
    line = refused(arguments(stub, tmp_path / "o"), capsys)
    assert f"no server answers at {stub.url}" in line
    assert "fix: start it" in line
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("models", [{"data": []}, [], {"data": "x"}], ids=["no-model", "list", "text"])
def test_what_is_no_openai_server(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str], models: object
) -> None:
    stub.models = models
    assert "not as an OpenAI-compatible server" in refused(arguments(stub, tmp_path), capsys)


def test_no_room_for_a_prompt(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(arguments(stub, tmp_path, "--max-tokens", "4096"), capsys)
    assert "--max-tokens 4096" in line
    assert "4096 tokens" in line
    assert stub.asked == []


def test_a_malformed_file_ends_the_run_with_its_line(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "d.jsonl", {"problem": "P"})
    line = refused([*arguments(stub, tmp_path), "--data", str(data), "--kind", "aime"], capsys)
    assert f'{data}, line 1: "answer" is missing' in line


FLAGS = {
    "no-server": (["--out", "o"], "--server --launch"),
    "server-without-scheme": (["--server", "localhost:30000", "--out", "o"], "'localhost:30000' is not a URL"),
    "data-without-kind": (["--launch", "--out", "o", "--data", "d"], "--data and --kind belong together"),
    "kind-without-data": (["--launch", "--out", "o", "--kind", "aime"], "--data and --kind belong together"),
    "budget-without-launch": (["--server", "http://x", "--out", "o", "--budget", "9"], "are for --launch"),
    "budget-of-dense": (["--launch", "--launch-backend", "torch_native", "--budget", "9", "--out", "o"], "has none"),
    "no-samples": (["--launch", "--out", "o", "--samples", "0"], "'0' is not a whole number above 0"),
    "cold": (["--launch", "--out", "o", "--temperature", "-1"], "'-1' is not a number from 0"),
    "nan": (["--launch", "--out", "o", "--temperature", "nan"], "'nan' is not a number"),
    "top-p-zero": (["--launch", "--out", "o", "--top-p", "0"], "'0' is not a number above 0 to 1"),
}


@pytest.mark.parametrize(("argv", "said"), FLAGS.values(), ids=FLAGS.keys())
def test_flags_that_cannot_work(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        reasoning.parse(argv)
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_seeds_depend_on_run_problem_and_sample() -> None:
    seeds = {reasoning_requests.sample_seed(s, p, n) for s in (0, 1) for p in ("a", "b", "1") for n in (0, 1, 11)}
    assert len(seeds) == 18


# The real thing


def sessions_below(process: subprocess.Popen[bytes]) -> set[int]:
    """The sessions of all processes below a running one; the server has one of its own."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(ProcessLookupError):
                found.add(os.getsid(child.pid))
    return found - {os.getsid(0)}


def running_in(sessions: set[int]) -> list[str]:
    left = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process.name())
    return left


@pytest.mark.e2e
def test_one_command_serves_asks_and_sums_up(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    command = [*COMMAND, "--launch", "--budget", "96", "--problems", "4", "--samples", "2"]
    command += ["--max-tokens", "48", "--concurrency", "4", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}
    sessions: set[int] = set()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                sessions |= sessions_below(process)
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0, log.read_text()
    assert sessions
    assert running_in(sessions) == []

    found = records(out)
    assert {(r["problem"], r["sample"]) for r in found} == {(f"arithmetic-{n}", k) for n in range(1, 5) for k in (0, 1)}
    assert len(found) == 8
    for record in found:
        assert 0 < record["completion_tokens"] <= 48
        assert record["prompt_tokens"] > 20
        assert record["finish_reason"] in ("stop", "length")
        assert record["text"]
        assert record["correct"] == is_correct(record["extracted"], record["expected"], "arithmetic")
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["figures"]["problems"], summary["figures"]["samples"], summary["figures"]["errors"]) == (4, 8, 0)
    assert summary["figures"]["accuracy"] == pytest.approx(sum(r["correct"] for r in found) / 8)
    assert summary["figures"]["output_tokens"] == sum(r["completion_tokens"] for r in found)
    assert summary["figures"]["tokens_per_second"] > 0
    assert summary["server"]["attention_backend"] == "lim"
    assert summary["server"]["lim"]["config"]["budget"] == 96
    read, full = (summary["lim_tokens_this_sitting"][key] for key in ("attended", "context"))
    assert 0 < read["sparse"] < full["sparse"]
    assert 0 < read["dense"] == full["dense"]
    assert "output tokens/s" in log.read_text()
