"""Which patches a process wants is decided when they are registered; one that does not take ends the start."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from lim_cpu_host import is_active
from lim_patches.ledger import LOSSLESS, PATCHES, START

TAKEN = [patch for patch in LOSSLESS if patch.has_target]  # of those that some releases do not need
STATE = "sglang.srt.managers.scheduler.Scheduler.get_internal_state"
REPORT = """
import json
from types import SimpleNamespace
from sglang.srt.plugins import load_plugins

def report():
    from lim_patches import ledger, registry
    from lim_sglang.tools import doctor
    load_plugins()
    import sglang.srt.managers.scheduler
    states = {finding.name: finding.value for finding in doctor._patches()}
    registry.check()
    print(json.dumps([[p.target for p in ledger.PATCHES if registry.is_registered(p)], states]), flush=True)
"""
LAUNCHER = """
import multiprocessing, signal, sys
from sglang.srt.model_executor import model_runner
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

def plugins_first():
    report()
    from lim_patches.ledger import LOSSLESS
    before = [p.target for p in LOSSLESS if p.applied]
    options = SimpleNamespace(disable_overlap_schedule=True)
    for _ in range(2): SpeculativeAlgorithm.from_string("LIM").create_worker(options)
    print(json.dumps([before, [p.target for p in LOSSLESS if p.applied]]), flush=True)

def hooked_by_another(target):
    HookRegistry.register(target, lambda original, *args: original(*args), HookType.AROUND)
    HookRegistry.apply_hooks()

def refused_by_sglang(target):
    apply = HookRegistry._apply_target
    HookRegistry._apply_target = lambda each, hooks: each == target or apply(each, hooks)

def serve(damage, target):
    load_plugins()
    damage(target)
    options = SimpleNamespace(disable_overlap_schedule=True, _lim_flags={})
    SpeculativeAlgorithm.from_string("LIM").create_worker(options)
    print("went on", flush=True)

def use_engine():
    from lim_patches.start import internal_state
    from lim_sglang import plugin
    load_plugins()
    internal_state.PATCH.undo()
    plugin.create_backend(SimpleNamespace(server_args=None))

def fork(run, *args):
    scheduler = multiprocessing.get_context("fork").Process(target=run, args=args)
    scheduler.start()
    scheduler.join()
    print("exit", scheduler.exitcode, flush=True)

signal.signal(signal.SIGQUIT, lambda *_: print("the launcher is told", flush=True))
fork(plugins_first)
import sglang.srt.managers.scheduler
fork(report)
for target in sys.argv[1:]:
    fork(serve, hooked_by_another, target)
    fork(serve, refused_by_sglang, target)
fork(use_engine)
"""


@pytest.fixture(scope="module")
def launcher() -> subprocess.CompletedProcess[str]:
    """Forks a process for each thing that may happen, before and after it imports SGLang's scheduler."""
    command = [sys.executable, "-c", REPORT + LAUNCHER, *(patch.target for patch in TAKEN)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def check_report(line: str, *, in_scheduler: bool) -> None:
    registered, states = json.loads(line)
    wanted = {
        patch.target
        for patch in START
        if (in_scheduler or not patch.only_if_loaded)
        and (is_active() or not patch.only_on_cpu_host)
        and patch.has_target
    }
    assert (STATE in wanted) is in_scheduler
    assert set(registered) == wanted
    for patch in PATCHES:
        expected = "applied" if patch.target in wanted else "not needed in this process"
        assert states[f"patch {patch.target}"] == expected


def test_nothing_is_missed_where_plugins_come_first_and_the_lossless_ones_come_when_asked_for(launcher: Any) -> None:
    report, lossless, ended = launcher.stdout.splitlines()[:3]
    check_report(report, in_scheduler=False)
    assert json.loads(lossless) == [[], [patch.target for patch in TAKEN]]
    assert ended == "exit 0"


def test_nothing_is_missed_where_the_scheduler_comes_first(launcher: Any) -> None:
    report, ended = launcher.stdout.splitlines()[3:5]
    check_report(report, in_scheduler=True)
    assert ended == "exit 0"


def test_a_patch_that_does_not_take_ends_the_start(launcher: Any) -> None:
    """A lossless one from the command line: one line, and the launcher hears as of SGLang's own failures.

    Another plugin has hooked it, or SGLang cannot patch it. A start patch is looked at where SGLang asks for the
    attention backend; a program that uses ``Engine`` gets an exception.
    """
    assert launcher.stdout.splitlines()[5:] == ["the launcher is told", "exit 1"] * 2 * len(TAKEN) + ["exit 1"]
    *lossless, start = [line for line in launcher.stderr.splitlines() if "lim-sglang" in line]
    assert len(lossless) == 2 * len(TAKEN)
    for patch, line in zip([patch for patch in TAKEN for _ in range(2)], lossless, strict=True):
        assert line.startswith(f"lim-sglang: error: not patched: {patch.target}; another plugin may hold it")
    assert start.startswith(f"lim_sglang.host.refusals.UnsupportedError: not patched: {STATE}; ")
    assert start.endswith("run `lim-sglang doctor`")
    assert launcher.stderr.count("Traceback") == 1
