"""``lim-sglang doctor | model | demo | calibrate | inspect``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lim_sglang import __version__
from lim_sglang.tools import doctor
from lim_sglang.tools.calibrate import command as calibrate
from lim_sglang.tools.common import run
from lim_sglang.tools.demo import command as demo
from lim_sglang.tools.inspect import command as inspect
from lim_sglang.tools.servers.embedded_model import ensure_model


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; its exit code."""
    parser = argparse.ArgumentParser(prog="lim-sglang", description="LessIsMore sparse attention for SGLang.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    told = commands.add_parser("doctor", help="can this environment serve lim, and if not, what to do")
    told.add_argument("--all", action="store_true", help="every name of SGLang and every patch, not only what is wrong")
    told.set_defaults(run=lambda args: doctor.run(every=args.all))

    model = commands.add_parser("model", help="print the folder of the embedded model, making it first if need be")
    model.add_argument("--verify", action="store_true", help="check every byte, not only the files' sizes")
    model.set_defaults(run=lambda args: run(lambda: print(ensure_model(verify=args.verify))))

    shown = commands.add_parser("demo", help="serve the embedded model and hold one multi-step conversation")
    demo.add_arguments(shown)
    shown.set_defaults(run=demo.run_demo)

    chosen = commands.add_parser("calibrate", help="choose a model's select layers from its own attention on text")
    calibrate.add_arguments(chosen)
    chosen.set_defaults(run=calibrate.run_calibrate)

    page = commands.add_parser("inspect", help="write an HTML page of what a prompt's decode steps attended to")
    inspect.add_arguments(page)
    page.set_defaults(run=inspect.run_inspect)

    args = parser.parse_args(argv)
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
