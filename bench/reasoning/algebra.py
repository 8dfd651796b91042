"""math-verify behind a time limit: it works in a process of its own, which ends where a text keeps it busy.

math-verify's own limit is SIGALRM, which only the main thread of a process can use.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import logging
import subprocess
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from bench.reasoning.data import ReasoningError

TIME_LIMIT = 5.0  # seconds of a processor for one question
_WORKER = Path(__file__).with_name("worker.py")
_log = logging.getLogger(__name__)
_lock = threading.Lock()  # questions wait for one another
_process: subprocess.Popen[str] | None = None


def check_installed() -> None:
    """Raise ``ReasoningError`` unless math-verify can be imported."""
    if importlib.util.find_spec("math_verify") is None:
        raise ReasoningError(
            "answers are graded by math-verify, which is missing; fix: pip install 'lim-sglang[bench]'"
        )


@lru_cache(maxsize=4096)
def equal(expected: str, found: str) -> bool:
    """Whether two texts of mathematics say the same, by math-verify; what it cannot say in time is not."""
    check_installed()
    with _lock:
        answer = _ask(json.dumps([expected, found]))
    if not answer:
        _log.warning("not graded within %g s, so it counts as wrong: %s", TIME_LIMIT, json.dumps(found)[:80])
    return answer == "true\n"


def _ask(question: str) -> str:
    """The process's line of answer; empty if the process ended over it, as it does at the time limit."""
    global _process
    if _process is None or _process.poll() is not None:
        _process = subprocess.Popen(
            # -P: the folder of the worker has a requests.py, which is not for libraries to find.
            [sys.executable, "-P", str(_WORKER), str(TIME_LIMIT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the one who asks
        )
    answer = ""
    try:
        with suppress(BrokenPipeError):
            print(question, file=_process.stdin, flush=True)
            answer = _process.stdout.readline() if _process.stdout else ""
    finally:
        if not answer:
            close()
    return answer


@atexit.register
def close() -> None:
    """End the process; the next question starts another."""
    global _process
    if _process is not None:
        _process.kill()
        _process.communicate()
        _process = None
