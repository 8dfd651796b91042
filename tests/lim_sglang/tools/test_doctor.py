"""The verdict hangs on the packages that a GPU needs, in the versions that the installed SGLang asks for."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from rich.console import Console

import lim_cpu_host as cpu_host
from lim_sglang.host import versions
from lim_sglang.host.host_check import HostName
from lim_sglang.host.refusals import REFUSALS
from lim_sglang.tools import doctor

SGLANG = str(versions.sglang_version())
ASKED = {
    "0.5.16": {"flashinfer-python": "0.6.14", "sglang-kernel": "0.4.5"},
    "0.5.23": {"flashinfer-python": "0.7.2", "sglang-kernel": "0.4.9"},
}[SGLANG]
Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes a GPU environment: what ``pip`` knows of a package, found before what is installed here."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK", raising=False)
    monkeypatch.setattr(cpu_host, "gpu_device", lambda: "/dev/nvidiactl")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")

    def add(package: str, number: str) -> None:
        name = package.replace("-", "_")
        folder = tmp_path / f"{name}-{number}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")

    return add


def report(*, every: bool = False) -> tuple[int, list[str]]:
    text = io.StringIO()
    code = doctor.run(Console(file=text, width=400), every=every)
    return code, text.getvalue().splitlines()


def about(lines: list[str], package: str) -> str:
    found = [line for line in lines if line.split()[1:2] == [package]]
    assert len(found) == 1, lines
    return " ".join(found[0].split())


def test_a_gpu_with_the_versions_asked_for_can_serve(install: Install) -> None:
    for package, lowest in ASKED.items():
        install(package, lowest)
    code, lines = report()
    assert about(lines, "flashinfer-python") == f"ok flashinfer-python {ASKED['flashinfer-python']}"
    assert about(lines, "triton") == f"ok triton {version('triton')}"
    assert (code, lines[-1]) == (0, "lim can serve here"), lines


@pytest.mark.parametrize("package", ASKED)
@pytest.mark.parametrize("found", ["0.1.9", None], ids=["old", "none"])
def test_an_old_package_or_none_is_a_failure(install: Install, package: str, found: str | None) -> None:
    for name, number in (ASKED | {package: found}).items():
        if number is not None:
            install(name, number)
    code, lines = report()
    asked = f"(SGLang asks for {ASKED[package]} or newer)"
    assert about(lines, package) == f"FAIL {package} {found or 'not installed'} {asked}"
    assert f'fix {package}: pip install "sglang=={SGLANG}", which brings the versions that it pins' in lines
    assert (code, lines[-1]) == (1, "lim cannot serve here")


def test_triton_missing_on_a_gpu_is_a_failure(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_triton(package: str) -> str:
        if package == "triton":
            raise PackageNotFoundError(package)
        return version(package)

    for package, lowest in ASKED.items():
        install(package, lowest)
    monkeypatch.setattr(versions, "version", without_triton)
    code, lines = report()
    assert about(lines, "triton") == "FAIL triton not installed"
    assert code == 1


def test_sglangs_switch_is_heard_but_flashinfer_is_still_needed(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK", "true")
    assert versions.package_problem("flashinfer-python") == "not installed"
    install("flashinfer-python", "0.1.9")
    assert versions.package_problem("flashinfer-python") == ""


def test_a_launch_on_such_a_gpu_is_refused(install: Install) -> None:
    class OnGpu:
        device = "cuda"

    entry = next(entry for entry in REFUSALS if "FlashInfer" in entry.feature)
    lowest = ASKED["flashinfer-python"]
    assert entry.found(OnGpu, None) == f"flashinfer-python not installed (SGLang asks for {lowest} or newer)"
    install("flashinfer-python", lowest)
    assert entry.found(OnGpu, None) == ""


@pytest.mark.usefixtures("install")
@pytest.mark.parametrize(
    ("device", "named"),
    [
        ("/dev/nvidiactl", "tested on a CPU only; untested on a GPU (tested there: 0.4.9)"),
        (None, "tested on a CPU"),
    ],
)
def test_the_report_says_where_this_sglang_was_tested(
    monkeypatch: pytest.MonkeyPatch, device: str | None, named: str
) -> None:
    monkeypatch.setattr(versions, "TESTED_SGLANG", {"cpu": ("0.4.9", SGLANG), "cuda": ("0.4.9",)})
    monkeypatch.setattr(cpu_host, "gpu_device", lambda: device)
    assert about(report()[1], "SGLang") == f"ok SGLang {SGLANG} {named}"


def test_the_report_is_what_a_person_needs_and_a_mismatch_is_always_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    code, lines = report()
    assert len(lines) <= 16, lines
    every = report(every=True)
    assert (every[0], every[1][-1]) == (code, lines[-1])
    assert sum("sglang.srt." in line for line in every[1]) > len(versions.HOST_NAMES)  # and the patches
    gone = HostName("sglang.srt.server_args", "ServerArgs.renamed_in_the_next_release")
    monkeypatch.setattr(versions, "HOST_NAMES", (*versions.HOST_NAMES, gone))
    code, lines = report()
    assert code == 1
    assert len(lines) <= 18, lines
    assert about(lines, gone.path) == f"FAIL {gone.path} no renamed_in_the_next_release in {gone.module}.ServerArgs"
    assert f'fix {gone.path}: pip install "{versions.supported_range()}"' in lines


def test_a_cpu_needs_none_of_them(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_host, "gpu_device", lambda: None)
    assert [finding for finding in doctor._versions() if finding.fix] == []
