"""The entry point: SGLang's plugin loader calls ``register()`` in every process it starts."""

from __future__ import annotations

import logging
import multiprocessing
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lim_cpu_host import gpu_device
from lim_sglang.errors import PREFIX, exit_with, one_line
from lim_sglang.host import ranks, versions

logger = logging.getLogger(__name__)

_BACKEND_FLAGS = ("--attention-backend", "--decode-attention-backend", "--prefill-attention-backend")
_registered = False


def register() -> None:
    """Register the backend ``lim``, its flags and its patches; idempotent.

    On a host that does not offer what the plugin relies on, nothing is registered and one ERROR names what is
    missing; where the command line asks for ``lim``, the process ends with that line, because SGLang would
    go on to say only that ``lim`` is an invalid choice.
    """
    global _registered
    if _registered:
        return
    try:
        problem = host_problem()
        if not problem:
            _register_all()
            _registered = True
    except Exception as error:
        problem = f"the plugin failed to load: {type(error).__name__}: {error}; run `lim-sglang doctor`"
        logger.debug("registration failed", exc_info=True)
    if problem:
        _give_up(problem)


def host_problem() -> str:
    """One line on why this SGLang cannot host the plugin, or an empty string.

    Only the first process of a server looks: its children run the same installation.
    """
    if multiprocessing.parent_process() is not None:
        return ""
    found = versions.sglang_version() or "of unknown version"
    problems = [f"{v.host_name.path}: {v.problem}" for v in versions.check_host() if not v.ok]
    if problems:
        return (
            f"SGLang {found} does not offer what lim relies on ({'; '.join(problems)}); "
            f"install {versions.supported_range()} and run `lim-sglang doctor`"
        )
    if doubt := versions.untested(found, "cpu" if gpu_device() is None else "cuda"):
        logger.warning("%s: SGLang %s is %s", PREFIX, found, doubt)
    return ""


def asks_for_lim(argv: Sequence[str]) -> bool:
    """Whether a command line selects the backend ``lim``."""
    joined = {f"{flag}=lim" for flag in _BACKEND_FLAGS}
    return any((word in _BACKEND_FLAGS and after == "lim") or word in joined for word, after in pairwise([*argv, ""]))


def _give_up(problem: str) -> None:
    if asks_for_lim(sys.argv):
        exit_with(problem)
    logger.error("%s: %s", PREFIX, one_line(problem))


def _register_all() -> None:
    from sglang.srt import server_args
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    from lim_patches import ledger, registry
    from lim_sglang.speculative import algorithm

    missing = versions.missing_fields(server_args.ServerArgs)
    if missing:
        raise RuntimeError(f"ServerArgs has no {', '.join(missing)}")
    if "lim" not in server_args.ATTENTION_BACKEND_CHOICES:
        server_args.add_attention_backend_choices(["lim"])
    register_attention_backend("lim")(create_backend)
    algorithm.register()
    registry.register(ledger.START)


def create_backend(runner: Any) -> Any:
    """Build the attention backend for SGLang's ``ModelRunner``.

    All ranks would log the same: the first does it for all.

    Raises:
        UnsupportedError: for a program that uses ``Engine``: a patch did not take, or see ``attention.build``.
        SystemExit: with one line on stderr, for the command line.
    """
    from lim_patches import registry
    from lim_sglang.attention import build
    from lim_sglang.host.launch import one_line_for_the_command_line

    with one_line_for_the_command_line(runner.server_args):
        registry.check()
    if not ranks.is_first_rank():
        logging.getLogger(__package__).setLevel(logging.ERROR)
    return build(runner)
