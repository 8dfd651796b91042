"""Which SGLang is installed, whether it was tested, and what it asks of its packages on a GPU."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

from lim_sglang.host.host_check import Verdict, check, constant_calls
from lim_sglang.host.names import HOST_NAMES, SERVER_ARGS_FIELDS

TESTED_SGLANG = {"cpu": ("0.5.16", "0.5.23"), "cuda": ("0.5.16", "0.5.23")}
"""The SGLang releases that the tests of this project ran on, by kind of device; the plugin loads on others, too."""


def sglang_version() -> str | None:
    """The installed SGLang's version, or None."""
    try:
        return version("sglang")
    except PackageNotFoundError:
        return None


def untested(found: str, device: str) -> str:
    """What was not tested with SGLang ``found`` on a ``device`` of this kind ("cpu", "cuda"); empty where it was.

    Three numbers count: ``0.5.16.post1`` is 0.5.16.
    """
    tested = [kind for kind, releases in TESTED_SGLANG.items() if _release(found) in map(_release, releases)]
    if device in tested:
        return ""
    where = {"cpu": "a CPU", "cuda": "a GPU"}
    doubt = f"untested on {where[device]} (tested there: {', '.join(TESTED_SGLANG[device])})"
    return f"tested on {where[tested[0]]} only; {doubt}" if tested else doubt


def supported_range() -> str:
    """From the first release that was tested anywhere to the last, as pip takes it: ``sglang>=A,<=B``."""
    releases = sorted({release for tested in TESTED_SGLANG.values() for release in tested}, key=_release)
    return f"sglang>={releases[0]},<={releases[-1]}"


def _release(text: str) -> tuple[int, ...]:
    parts = text.split("+")[0].split(".")
    return tuple(int(p) for p in parts[:3] if p.isdigit())


def check_host() -> list[Verdict]:
    """The verdict on every name that is relied on; reads source files only, imports nothing of SGLang."""
    return check(HOST_NAMES)


def lowest_versions() -> dict[str, str]:
    """The lowest version of each package that SGLang asks for on a GPU, read from its source.

    SGLang asks only where it attends with FlashInfer itself, and not at all where its own switch says so.
    """
    if os.environ.get("SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK", "").lower() in ("1", "true"):
        return {}
    calls = constant_calls("sglang.srt.entrypoints.engine", "assert_pkg_version")
    return {str(package).replace("_", "-"): str(lowest) for package, lowest, *_ in calls}


def package_problem(package: str) -> str:
    """What is wrong with an installed package that a GPU needs, or an empty string.

    ``not installed``, or the version that is there and the one that SGLang asks for.
    """
    from packaging.version import Version  # one of SGLang's dependencies

    lowest = lowest_versions().get(package)
    asked = f" (SGLang asks for {lowest} or newer)" if lowest else ""
    try:
        found = version(package)
    except PackageNotFoundError:
        return f"not installed{asked}"
    return f"{found}{asked}" if lowest and Version(found) < Version(lowest) else ""


def missing_fields(server_args_class: type) -> list[str]:
    """Those of ``SERVER_ARGS_FIELDS`` that this SGLang's ``ServerArgs`` does not declare."""
    declared = set(getattr(server_args_class, "__dataclass_fields__", ()))
    declared |= set(getattr(server_args_class, "__struct_fields__", ()))
    return [name for name in SERVER_ARGS_FIELDS if name not in declared]
