"""The line that tells why a server ended, from logs of real ends and from what else Python prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from lim_sglang.tools.servers.process import meaningful_line

LOGS = Path(__file__).parent / "logs"

# Recorded from servers of both SGLang versions whose backend was made to fail; frames between the ends are left out.
RECORDED = {
    "compilation-error-0.5.16": "triton.compiler.errors.CompilationError: at 31:4; caused by "
    "triton.compiler.errors.CompilationError: at 12:11: type fp8e4nv not supported in this architecture. "
    "The supported fp8 dtypes are ('fp8e4b15', 'fp8e5')",
    "timeout-0.5.23": "subprocess.TimeoutExpired: Command '['sleep', '9']' timed out after 0.09996887399984189 seconds",
    "unsupported-0.5.16": "torch._dynamo.exc.Unsupported: Failed to trace builtin operator Explanation: Dynamo does "
    "not know how to trace builtin operator `open`",
    "segmentation-fault-0.5.16": "Fatal Python error: Segmentation fault",
}
RECORDED["compilation-error-0.5.23"] = RECORDED["compilation-error-0.5.16"]


@pytest.mark.parametrize("name", sorted(path.stem for path in LOGS.glob("*.log")))
def test_a_recorded_end(name: str) -> None:
    line = meaningful_line((LOGS / f"{name}.log").read_text().split("\n"))
    assert line.startswith(RECORDED[name])
    assert len(line) <= 500


def test_every_record_has_its_file() -> None:
    assert sorted(RECORDED) == sorted(path.stem for path in LOGS.glob("*.log"))


HIT = '[2026-01-01 00:00:00] Scheduler hit an exception: Traceback (most recent call last):\n  File "a", line 1, in f\n'
TRACE = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    f()\n    ^^^\n'
END = (
    "\n[2026-01-01 00:00:00] SIGQUIT received. signum=None, frame=None. It usually means one child failed."
    "\n[2026-01-01 00:00:05] No live scheduler processes found; skipping py-spy and CUDA coredump."
    "\n[2026-01-01 00:00:05] kill_process_tree called: parent_pid=1, include_parent=True, pid=1\n"
)
CAUSED = "\nThe above exception was the direct cause of the following exception:\n\n"
HANDLED = "\nDuring handling of the above exception, another exception occurred:\n\n"
PASSING = f"[2026-01-01 00:00:00] post-warmup freeze_gc failed\n{TRACE}requests.exceptions.ConnectionError: refused\n"
KILLED = (
    "[2026-01-01 00:00:00] Subprocess scheduler_0 (pid=9) crashed with exit code {}. Triggering SIGQUIT for cleanup"
)
NINJA = "RuntimeError: Ninja build failed. Ninja output:\n" + "[1/2] nvcc -O3 -std=c++17 x.cu\n" * 40

ENDS = {
    "OutOfResources": (
        f"{HIT}triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 135168, Hardware limit: "
        f"101376. Reducing block sizes or `num_stages` may help.\n{END}",
        "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 135168, Hardware limit: 101",
    ),
    "a kernel that does not compile in its first line": (
        f"{HIT}triton.compiler.errors.CompilationError: at 1:0:\ndef kernel(X):\n^\nAssertionError('K is not 2^n')"
        f"{END}",
        "triton.compiler.errors.CompilationError: at 1:0: AssertionError('K is not 2^n')",
    ),
    "a kernel's source with an empty line": (
        f"{HIT}CompilationError: at 3:4:\ndef kernel(X):\n\n    tl.dot(X)\n    ^\nK >= 16 is needed\n{END}",
        "CompilationError: at 3:4: K >= 16 is needed",
    ),
    "a name in small letters": (
        f"{HIT}socket.gaierror: [Errno -2] Name not known\n{END}",
        "socket.gaierror: [Errno -2]",
    ),
    "no message": (f"{HIT}zmq.error.Again\n{END}", "zmq.error.Again"),
    "a local class": (f"{HIT}plugin.load.<locals>.NoModel: gone\n{END}", "plugin.load.<locals>.NoModel: gone"),
    "a word that is no exception": (f"{HIT}half a line of another process\n{END}", "half a line of another process"),
    "ranks": (
        "".join(f"[rank0]: {line}\n" for line in f"{TRACE}torch.distributed.DistStoreError: timed out".split("\n"))
        + END,
        "torch.distributed.DistStoreError: timed out",
    ),
    "a head that is cut off": (f'  File "a.py", line 1, in f\n    f()\nqueue.Empty: none\n{END}', "queue.Empty: none"),
    "from another": (
        f"{TRACE}OSError: no space\n{CAUSED}{TRACE}X: no model\n",
        "X: no model; caused by OSError: no space",
    ),
    "while handling another": (f"{TRACE}KeyError: 1\n{HANDLED}{TRACE}X: a\n", "X: a; while handling KeyError: 1"),
    "quoted by the next": (f"{TRACE}OSError: no space\n{CAUSED}{TRACE}X: failed: no space\n", "X: failed: no space"),
    "only noticed by the next": (
        f"{TRACE}Unsupported: alas\n{CAUSED}{TRACE}RuntimeError: Initialization failed. See above\n",
        "Unsupported: alas",
    ),
    "not from the one before": (f"{TRACE}OSError: a\n\n{TRACE}X: b\n", "X: b"),
    "a broken pipe afterwards": (
        f"{HIT}Unsupported: alas\n\n{TRACE}BrokenPipeError: [Errno 32]\n",
        "Unsupported: alas",
    ),
    "a cancelled task afterwards": (
        f"{HIT}Unsupported: alas\n\nERROR:    {TRACE}asyncio.exceptions.CancelledError\n",
        "Unsupported: alas",
    ),
    "an error that is ignored afterwards": (
        f"{HIT}Unsupported: alas\n\nException ignored in: <function X.__del__ at 0x7f>\n{TRACE}AttributeError: y\n",
        "Unsupported: alas",
    ),
    "killed long after a logged error": (
        f"{PASSING}{KILLED.format(-9)}\n{END}",
        "Subprocess scheduler_0 (pid=9) crashed",
    ),
    "an exception after a logged error": (f"{PASSING}{HIT}queue.Empty\n{KILLED.format(-3)}\n{END}", "queue.Empty"),
    "a logged error only": (f"{PASSING}{END}", "requests.exceptions.ConnectionError: refused"),
    "a group": (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "a.py", line 1, in f\n'
        "  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)\n"
        "  +-+---------------- 1 ----------------\n"
        "    | Traceback (most recent call last):\n"
        '    |   File "a.py", line 2, in g\n'
        "    | TimeoutExpired: too late\n"
        "    +------------------------------------\n",
        "TimeoutExpired: too late",
    ),
    "C++": (
        "terminate called after throwing an instance of 'c10::Error'\n  what():  CUDA driver is too old\n"
        f"Fatal Python error: Aborted\n{END}",
        "what():  CUDA driver is too old",
    ),
    "a long message": (
        f"{HIT}{NINJA}x.cu:3: fatal error: cuda.h: No such file\nninja: stopped\n{END}",
        "RuntimeError: Ninja",
    ),
}


@pytest.mark.parametrize(("log", "expected"), ENDS.values(), ids=ENDS.keys())
def test_an_end(log: str, expected: str) -> None:
    assert meaningful_line(log.split("\n")).startswith(expected)


def test_a_message_ends_where_something_else_begins() -> None:
    for other in (
        END,
        "\nINFO:     Shutting down",
        f"\n{TRACE}KeyboardInterrupt",
        "\nProcess Spawn-1:",
        "\nKilled",
        "\nW0101 00:00:00.1 t",
    ):
        assert meaningful_line(f"{HIT}queue.Empty: none{other}".split("\n")) == "queue.Empty: none"


def test_what_a_long_message_calls_an_error_is_told() -> None:
    line = meaningful_line(ENDS["a long message"][0].split("\n"))
    assert "x.cu:3: fatal error: cuda.h: No such file" in line
    assert len(line) <= 500
