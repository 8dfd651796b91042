"""``lim-sglang doctor``: can this environment serve ``lim``, and if not, what to do."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version

from rich.console import Console

from lim_sglang.errors import one_line
from lim_sglang.host import versions

PACKAGES = ("torch", "triton", "flashinfer-python", "sglang-kernel", "sglang", "lim-sglang")
GPU_PACKAGES = ("triton", "flashinfer-python", "sglang-kernel")  # a CPU does without them


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        fix: makes it a failure.
        is_detail: it is shown only where it is a failure or everything was asked for.
    """

    name: str
    value: str
    fix: str = ""
    is_detail: bool = False


def run(console: Console | None = None, *, every: bool = False) -> int:
    """Print the report, with every detail if asked for; 0 when ``lim`` can serve here, else 1."""
    console = console or Console(soft_wrap=True)
    findings = [*_versions(), *_device(), *_host(), *_plugin()]
    shown = [finding for finding in findings if every or finding.fix or not finding.is_detail]
    width = max(len(finding.name) for finding in shown)
    for finding in shown:
        verdict = "[red]FAIL[/red]" if finding.fix else "[green]ok[/green]  "
        console.print(f"{verdict}  {finding.name:<{width}}  {finding.value}", highlight=False)
    failures = [finding for finding in findings if finding.fix]
    for finding in failures:
        console.print(f"[red]fix[/red] {finding.name}: {finding.fix}", highlight=False)
    console.print("lim cannot serve here" if failures else "lim can serve here", highlight=False)
    return 1 if failures else 0


def _versions() -> list[Finding]:
    return [Finding("Python", platform.python_version()), *(_package(package) for package in PACKAGES)]


def _package(package: str) -> Finding:
    """On a GPU, the version must be the one that SGLang asks for, or newer."""
    from lim_cpu_host import gpu_device

    needed = package not in GPU_PACKAGES or gpu_device() is not None
    if needed and versions.sglang_version() is not None:
        problem = versions.package_problem(package)
        if problem:
            return Finding(package, problem, _install_fix(package))
    try:
        return Finding(package, version(package))
    except PackageNotFoundError:
        return Finding(package, "not installed", _install_fix(package) if needed else "")


def _install_fix(package: str) -> str:
    if package in GPU_PACKAGES and versions.sglang_version() is not None:
        return f'pip install "sglang=={versions.sglang_version()}", which brings the versions that it pins'
    return f"pip install {package}" if package == "lim-sglang" else f'pip install "{versions.supported_range()}"'


def _device() -> list[Finding]:
    from lim_cpu_host import gpu_device, is_active

    device = gpu_device()
    if device is not None:
        return [_gpu(device), Finding("CPU host", "off (this machine has a GPU)")]
    fix = "" if is_active() else "python -m lim_cpu_host enable"
    return [Finding("GPU", "none"), Finding("CPU host", "on" if is_active() else "off", fix)]


def _gpu(device: str) -> Finding:
    try:
        import torch

        if torch.cuda.is_available():
            return Finding("GPU", torch.cuda.get_device_name())
    except (ImportError, RuntimeError) as error:
        return Finding("GPU", f"{device}; torch: {one_line(str(error))}", "install a torch that sees the GPU")
    return Finding("GPU", f"{device}, but torch sees none", "install a CUDA build of torch that fits the driver")


def _host() -> list[Finding]:
    from lim_cpu_host import gpu_device

    found = versions.sglang_version()
    if found is None:
        return []
    install = f'pip install "{versions.supported_range()}"'
    details = [
        Finding(verdict.host_name.path, verdict.problem or "ok", install if verdict.problem else "", is_detail=True)
        for verdict in versions.check_host()
    ]
    offered = sum(not detail.fix for detail in details)
    kind, device = ("CPU", "cpu") if gpu_device() is None else ("GPU", "cuda")
    tested = versions.untested(found, device) or f"tested on a {kind}"  # that it was not is no failure
    names = f"{offered} of {len(details)} as lim needs them"
    return [Finding(f"SGLang {found}", tested), Finding("names of SGLang", names), *details]


def _plugin() -> list[Finding]:
    """Load the plugin as SGLang does and look at what took."""
    if versions.sglang_version() is None:
        return []
    registered = [e for e in entry_points(group="sglang.srt.plugins") if e.value == "lim_sglang.plugin:register"]
    if not registered:
        return [Finding("entry point", "missing", "reinstall lim-sglang with pip")]
    try:
        from sglang.srt.plugins import load_plugins

        load_plugins()
        return [Finding("entry point", registered[0].name), *_patches()]
    except Exception as error:
        return [Finding("plugin", one_line(f"{type(error).__name__}: {error}"), "see the lines above")]


def _patches() -> list[Finding]:
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    from lim_patches.ledger import PATCHES
    from lim_patches.registry import is_registered

    registered = "lim" in ATTENTION_BACKENDS
    fix = "" if registered else "check SGLANG_PLUGINS: it must be unset or name lim"
    findings = [Finding("backend lim", "registered" if registered else "not registered", fix)]
    for patch in PATCHES:
        wanted = is_registered(patch) or not registered
        state = "applied" if patch.applied else "not applied" if wanted else "not needed in this process"
        problem = "another plugin may hold it" if state == "not applied" and registered else ""
        findings.append(Finding(f"patch {patch.target}", state, problem, is_detail=True))
    return findings
