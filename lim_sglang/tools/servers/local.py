"""SGLang servers on this machine, for what compares or shows them: which device, how large, dense or lim."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from lim_cpu_host import gpu_device
from lim_sglang.host import finders
from lim_sglang.tools.servers.embedded_model import ensure_model
from lim_sglang.tools.servers.process import ServerProcess

DENSE = "dense"  # attention: SGLang's own backend for the device
LIM = finders.BACKEND
LOSSLESS = "lossless"  # lim drafts, dense attention verifies


@dataclass(frozen=True)
class Device:
    """What a server is started with on this machine, and what the user should know about it.

    Attributes:
        dense_backend: SGLang's name of the attention backend that lim is compared with.
        args: options of every server.
        small_args: more options of servers that are to leave most of the device to others.
        env: laid over this process's environment.
        note: a line for the user, or empty.
    """

    dense_backend: str
    args: list[str] = field(default_factory=list)
    small_args: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def is_cpu(self) -> bool:
        return "--device" in self.args


@dataclass(frozen=True)
class Size:
    """The limits of a small server: ``tokens`` of its KV cache, ``requests`` that run at a time."""

    tokens: int
    requests: int


EMBEDDED_BUDGET = 256  # tokens: what the embedded model is shown with, whose contexts are short
BUDGETS = f"{EMBEDDED_BUDGET} for the embedded model, else lim's default"  # for --help
BENCH_SIZE = Size(24576, 16)  # the prefixes that requests share stay cached


def find_device() -> Device:
    """The GPU if there is one and lim can use it; else the CPU, with a note when a GPU is left unused."""
    has_gpu = gpu_device() is not None
    if has_gpu and _torch_sees_gpu():
        return Device("flashinfer", small_args=["--mem-fraction-static", "0.3"])
    return Device(
        "torch_native",
        ["--device", "cpu", "--dtype", "float32"],
        env={"SGLANG_USE_CPU_ENGINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        note="This machine has an NVIDIA GPU, but the installed torch cannot use it: the CPU serves."
        if has_gpu
        else "",
    )


def server_arguments(device: Device, attention: str, size: Size | None, given: Sequence[str] = ()) -> list[str]:
    """Options of one server.

    Args:
        attention: ``lim``, ``lossless``, ``dense``, or the name of another backend of SGLang.
        size: its limits; None leaves them to SGLang.
        given: values of --server-arg; they win, and those of lim's own flags go to lim only.
    """
    own = {DENSE: [device.dense_backend], LOSSLESS: [LIM, "--speculative-algorithm", finders.LOSSLESS]}
    options = ["--attention-backend", *own.get(attention, [attention]), "--enable-cache-report", *device.args]
    if size is not None:
        options += ["--max-total-tokens", str(size.tokens), "--max-running-requests", str(size.requests)]
        options += device.small_args
    has_lim = attention in (LIM, LOSSLESS)
    kept = (option for option in given if has_lim or not option.startswith("--lim-"))
    return [*options, *(word for option in kept for word in shlex.split(option))]


@contextmanager
def launched(
    attention: str,
    model: str | Path | None,
    *,
    budget: int | None,
    size: Size,
    given: Sequence[str],
    log: Path,
    note: Console,
    lost: type[Exception] | tuple[()] = (),
) -> Iterator[ServerProcess]:
    """A server on a free port, ready; it ends with the block.

    Args:
        attention: as of ``server_arguments``.
        model: a folder or a name that SGLang knows; None is the embedded model.
        budget: tokens, for lim; None is lim's default, or ``EMBEDDED_BUDGET``.
        size: limits of the embedded model and of any model on a CPU; else SGLang fills the device as it likes.
        log: file of the server's output.
        lost: what the block raises where the server no longer answers; if it has ended, its log tells more.

    Raises:
        ServerError: it did not start, or it ended and the block raised ``lost``.
    """
    device = find_device()
    if device.note:
        note.print(device.note, soft_wrap=True)
    limits = size if model is None or device.is_cpu else None
    if budget is None and model is None:
        budget = EMBEDDED_BUDGET
    budget_args = [] if budget is None else [f"--lim-budget {budget}"]
    options = server_arguments(device, attention, limits, [*budget_args, *given])
    server = ServerProcess(model or ensure_model(), options, env=device.env, log_path=log)
    with ready(server, f"Starting SGLang, {attention}", note, lost):
        yield server


@contextmanager
def ready(
    server: ServerProcess, title: str, note: Console, lost: type[Exception] | tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """``server``, started and ready; it ends with the block.

    Args:
        title: what is said while it starts.
        lost: what the block raises where the server no longer answers. SGLang takes several seconds to end after one
            of its processes crashed; if it ends, that is raised instead.
    """
    with server:
        with note.status(f"{title} ...") as status:
            server.wait_ready(lambda elapsed: status.update(f"{title}: {elapsed:.0f} s"))
        try:
            yield
        except lost:
            server.check_running(wait=15)
            raise


def _torch_sees_gpu() -> bool:
    """Asked in a child process, so that this one never holds GPU memory."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
