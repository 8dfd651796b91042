"""An SGLang plugin for tests: a server forks its other processes, which need not import SGLang once more then."""

from __future__ import annotations

import gc
import multiprocessing


def register() -> None:
    """Choose the start method before SGLang does.

    Plugins are not loaded again in a forked process: what it serves with is imported before they are, so that they hook
    it here. What has been imported stays shared, as no collection looks at it.
    """
    import sglang.srt.managers.scheduler  # noqa: F401

    choose = multiprocessing.set_start_method
    multiprocessing.set_start_method = lambda method, force=False: choose("fork", force=True)
    gc.freeze()
