"""An SGLang plugin for tests: a server forks its other processes, which need not import SGLang once more then."""

from __future__ import annotations

import gc
import multiprocessing


def register() -> None:
    """Choose the start method before SGLang does.

    Plugins are not loaded again in a forked process: what it serves with is imported, and patched, before. It stays
    shared, as no collection looks at it.
    """
    gc.disable()
    import sglang.srt.managers.scheduler  # noqa: F401

    gc.freeze()
    gc.enable()
    from lim_patches import ledger, registry

    registry.register(ledger.START)
    choose = multiprocessing.set_start_method
    multiprocessing.set_start_method = lambda method, force=False: choose("fork", force=True)
