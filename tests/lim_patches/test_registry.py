"""Which patches a process wants is decided when the plugin registers, whatever it loads afterwards."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lim_cpu_host import is_active
from lim_patches.registry import PATCHES

STATE = "sglang.srt.managers.scheduler.Scheduler.get_internal_state"
SCHEDULERS_ONLY = {patch.target for patch in PATCHES if patch.only_if_loaded}
ON_DEMAND = {patch.target for patch in PATCHES if patch.on_demand}
CPU_HOST_ONLY = {patch.target for patch in PATCHES if patch.only_on_cpu_host}
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
from lim_patches import registry
from lim_sglang.tools import doctor
states = {finding.name: finding.value for finding in doctor._patches()}
registry.register()  # a second call decides nothing anew
print(json.dumps([[p.target for p in registry.PATCHES if registry.is_registered(p)], registry.not_applied(), states]))
"""


@pytest.mark.parametrize(("loads", "in_scheduler"), [(PLUGINS_FIRST, False), (SCHEDULER_FIRST, True)])
def test_nothing_is_missed_whichever_comes_first(loads: str, in_scheduler: bool) -> None:
    done = subprocess.run([sys.executable, "-c", loads + REPORT], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    registered, not_applied, states = json.loads(done.stdout.strip().splitlines()[-1])
    unwanted = (set() if in_scheduler else SCHEDULERS_ONLY) | (set() if is_active() else CPU_HOST_ONLY) | ON_DEMAND
    assert STATE in SCHEDULERS_ONLY
    assert not_applied == []
    assert set(registered) == {patch.target for patch in PATCHES} - unwanted
    for patch in PATCHES:
        expected = "not needed in this process" if patch.target in unwanted else "applied"
        assert states[f"patch {patch.target}"] == expected


def test_a_hook_that_another_plugin_undid_is_told() -> None:
    code = SCHEDULER_FIRST + (
        "from lim_patches import registry\nfrom lim_patches.start import internal_state\n"
        "internal_state.PATCH.undo()\nprint(registry.not_applied())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip().splitlines()[-1] == f"['{STATE}']", done.stderr


def test_what_is_wanted_on_demand_is_applied_then() -> None:
    """At a launch, by the hook of ``check_server_args``, and where SGLang asks for the lossless mode's worker."""
    code = PLUGINS_FIRST + (
        "import json\n"
        "from types import SimpleNamespace\n"
        "from lim_patches import registry\nfrom lim_patches.start import check_server_args\n"
        "from sglang.srt.speculative.spec_info import SpeculativeAlgorithm\n"
        "def applied(): return [p.target for p in registry.PATCHES if p.on_demand and p.applied]\n"
        "check_server_args.check_launch = lambda _args: None\n"
        "found = [applied()]\n"
        "for _ in range(2): check_server_args.check_lim(None, SimpleNamespace())\n"
        "found.append(applied())\n"
        "args = SimpleNamespace(disable_overlap_schedule=True)\n"
        "for _ in range(2): SpeculativeAlgorithm.from_string('LIM').create_worker(args)\n"
        "print(json.dumps([*found, applied(), registry.not_applied()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    before, launched, served, not_applied = map(set, json.loads(done.stdout.strip().splitlines()[-1]))
    at_launch = ON_DEMAND & CPU_HOST_ONLY if is_active() else set()
    assert (before, launched, not_applied) == (set(), at_launch, set())
    assert served == at_launch | (ON_DEMAND - CPU_HOST_ONLY) != launched
