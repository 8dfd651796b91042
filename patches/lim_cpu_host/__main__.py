"""``python -m lim_cpu_host enable|disable``: switch the stand-ins on or off for this environment."""

from __future__ import annotations

import argparse
import sys
import sysconfig
from pathlib import Path

from lim_cpu_host import START_UP_FILE, START_UP_LINE, gpu_device


def start_up_path() -> Path:
    return Path(sysconfig.get_path("purelib")) / START_UP_FILE


def enable() -> str:
    device = gpu_device()
    if device is not None:
        sys.exit(f"lim-sglang: error: this machine has a GPU ({device}): the CPU host is not needed and stays off")
    start_up_path().write_text(START_UP_LINE)
    return f"CPU host on for this environment ({start_up_path()})"


def disable() -> str:
    start_up_path().unlink(missing_ok=True)
    return "CPU host off for this environment"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lim_cpu_host", description=__doc__)
    parser.add_argument("action", choices=["enable", "disable"])
    print(enable() if parser.parse_args().action == "enable" else disable())


if __name__ == "__main__":
    main()
