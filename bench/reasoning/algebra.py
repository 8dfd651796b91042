"""math-verify behind a time limit: it works in a process of its own, which ends where a text keeps it busy."""

from __future__ import annotations

import atexit
import importlib.util
import json
import logging
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from bench.reasoning.data import ReasoningError

TIME_LIMIT = 5.0  # seconds of a processor for one question: what else runs on the machine changes no grade
_WORKER = Path(__file__).with_name("worker.py")
_log = logging.getLogger(__name__)


def check_installed() -> None:
    """Raise ``ReasoningError`` unless math-verify can be imported."""
    if importlib.util.find_spec("math_verify") is None:
        raise ReasoningError(
            "answers are graded by math-verify, which is missing; fix: pip install 'lim-sglang[bench]'"
        )


@lru_cache(maxsize=4096)
def equal(expected: str, found: str) -> bool:
    """Whether two texts of mathematics say the same, by math-verify; what it cannot say in time is not."""
    return _ask("equal", expected, found) is True


@lru_cache(maxsize=4096)
def value(text: str) -> str | None:
    """The rational number that an expression comes to, as ``73`` or ``3/4``; None if it comes to something else."""
    answer = _ask("value", text)
    return answer if isinstance(answer, str) else None


def _ask(name: str, *texts: str) -> object:
    check_installed()
    answer = _worker.ask(json.dumps([name, *texts]))
    if answer is None:
        _log.warning("not graded within %g s, so it counts as wrong: %s", TIME_LIMIT, json.dumps(texts[-1])[:80])
        return None
    return json.loads(answer)


class _Worker:
    """One process at a time, started when it is first asked and after each end; questions wait for one another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, question: str) -> str | None:
        """The answer to one line; None if the process ended over it, as it does at the time limit."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._started()
            answer = ""
            try:
                answer = _exchange(self._process, question)
            finally:
                if not answer.endswith("\n"):
                    self._stop()
            return answer or None

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _started(self) -> subprocess.Popen[str]:
        # -P: the folder of the worker has a requests.py, which is not for libraries to find.
        command = [sys.executable, "-P", str(_WORKER), str(TIME_LIMIT)]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the one who asks
        )

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _exchange(process: subprocess.Popen[str], question: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(question + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline()


_worker = _Worker()


def close() -> None:
    """End the process; the next question starts another, and what has been answered is forgotten."""
    _worker.close()
    equal.cache_clear()
    value.cache_clear()


atexit.register(close)
