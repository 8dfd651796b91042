"""Which patches a process wants is decided when they are registered; one that does not take ends the start."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lim_cpu_host import is_active
from lim_patches.ledger import LAUNCH, LOSSLESS, PATCHES, START

STATE = "sglang.srt.managers.scheduler.Scheduler.get_internal_state"
PLUGINS_FIRST = """
from sglang.srt.plugins import load_plugins
load_plugins()
import sglang.srt.managers.scheduler
"""
SCHEDULER_FIRST = """
import sglang.srt.managers.scheduler
from sglang.srt.plugins import load_plugins
load_plugins()
"""
REPORT = """
import json
from lim_patches import ledger, registry
from lim_sglang.tools import doctor
states = {finding.name: finding.value for finding in doctor._patches()}
registry.check()
print(json.dumps([[p.target for p in ledger.PATCHES if registry.is_registered(p)], states]))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(("loads", "in_scheduler"), [(PLUGINS_FIRST, False), (SCHEDULER_FIRST, True)])
def test_nothing_is_missed_whichever_comes_first(loads: str, in_scheduler: bool) -> None:
    done = run(loads + REPORT)
    assert done.returncode == 0, done.stderr
    registered, states = json.loads(done.stdout.strip().splitlines()[-1])
    wanted = {
        patch.target
        for patch in START
        if (in_scheduler or not patch.only_if_loaded) and (is_active() or not patch.only_on_cpu_host)
    }
    assert (STATE in wanted) is in_scheduler
    assert set(registered) == wanted
    for patch in PATCHES:
        expected = "applied" if patch.target in wanted else "not needed in this process"
        assert states[f"patch {patch.target}"] == expected


def test_later_ones_are_applied_when_they_are_asked_for() -> None:
    """At a launch, by the hook of ``check_server_args``, and where SGLang asks for the lossless mode's worker."""
    done = run(
        PLUGINS_FIRST + "import json\n"
        "from types import SimpleNamespace\n"
        "from lim_patches import ledger\nfrom lim_patches.start import check_server_args\n"
        "from sglang.srt.speculative.spec_info import SpeculativeAlgorithm\n"
        "def applied(): return [p.target for p in ledger.LAUNCH + ledger.LOSSLESS if p.applied]\n"
        "check_server_args.check_launch = lambda _args: None\n"
        "found = [applied()]\n"
        "for _ in range(2): check_server_args.check_lim(None, SimpleNamespace())\n"
        "found.append(applied())\n"
        "args = SimpleNamespace(disable_overlap_schedule=True)\n"
        "for _ in range(2): SpeculativeAlgorithm.from_string('LIM').create_worker(args)\n"
        "print(json.dumps([*found, applied()]))"
    )
    assert done.returncode == 0, done.stderr
    launch = [patch.target for patch in LAUNCH] if is_active() else []
    lossless = [patch.target for patch in LOSSLESS]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [[], launch, launch + lossless]


ANOTHERS = """
    HookRegistry.register({target!r}, lambda original, *args: original(*args), HookType.AROUND)
    HookRegistry.apply_hooks()
"""
REFUSED = """
    apply = HookRegistry._apply_target
    HookRegistry._apply_target = lambda target, hooks: target == {target!r} or apply(target, hooks)
"""
LAUNCHER = """
import multiprocessing, signal
from types import SimpleNamespace
def serve():
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
    load_plugins()
    {damage}
    options = SimpleNamespace(disable_overlap_schedule=True, _lim_flags={{}})
    SpeculativeAlgorithm.from_string("LIM").create_worker(options)
    print("went on", flush=True)
signal.signal(signal.SIGQUIT, lambda *_: print("the launcher is told", flush=True))
scheduler = multiprocessing.get_context("fork").Process(target=serve)
scheduler.start()
scheduler.join()
print("exit", scheduler.exitcode)
"""


@pytest.mark.parametrize("damage", [ANOTHERS, REFUSED], ids=["another plugin has hooked it", "SGLang cannot patch it"])
@pytest.mark.parametrize("patch", LOSSLESS, ids=lambda patch: patch.target.rsplit(".", 1)[1])
def test_a_lossless_patch_that_does_not_take_ends_the_start(patch: object, damage: str) -> None:
    """In a scheduler's process, from the command line: one line, and the launcher hears as of SGLang's own failures."""
    target = patch.target  # type: ignore[attr-defined]
    done = run(LAUNCHER.format(damage=damage.format(target=target).strip()))
    assert done.stdout.splitlines() == ["the launcher is told", "exit 1"], done.stderr
    said = [line for line in done.stderr.splitlines() if "lim-sglang" in line]
    assert len(said) == 1
    assert said[0].startswith(f"lim-sglang: error: not patched: {target}; another plugin may hold it")
    assert "Traceback" not in done.stderr


def test_a_start_patch_that_another_plugin_took_back_ends_the_start() -> None:
    """Where SGLang asks for the attention backend; a program that uses ``Engine`` gets an exception."""
    done = run(
        SCHEDULER_FIRST + "from types import SimpleNamespace\nfrom lim_sglang import plugin\n"
        "from lim_patches.start import internal_state\n"
        "internal_state.PATCH.undo()\nplugin.create_backend(SimpleNamespace(server_args=None))"
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"lim_sglang.host.refusals.UnsupportedError: not patched: {STATE}; ")
    assert last.endswith("run `lim-sglang doctor`")
