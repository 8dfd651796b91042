"""``lim-sglang doctor | model | demo | calibrate | inspect``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lim_sglang import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; its exit code."""
    parser = argparse.ArgumentParser(prog="lim-sglang", description="LessIsMore sparse attention for SGLang.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="can this environment serve lim, and if not, what to do")
    doctor.set_defaults(run=_doctor)

    model = commands.add_parser("model", help="print the folder of the embedded model, making it first if need be")
    model.add_argument("--verify", action="store_true", help="check every byte, not only the files' sizes")
    model.set_defaults(run=_model)

    demo = commands.add_parser("demo", help="serve the embedded model and hold one multi-step conversation")
    _add_demo_arguments(demo)
    demo.set_defaults(run=_demo)

    calibrate = commands.add_parser("calibrate", help="choose a model's select layers from its own attention on text")
    _add_calibrate_arguments(calibrate)
    calibrate.set_defaults(run=_calibrate)

    inspect = commands.add_parser("inspect", help="write an HTML page of what a prompt's decode steps attended to")
    _add_inspect_arguments(inspect)
    inspect.set_defaults(run=_inspect)

    args = parser.parse_args(argv)
    return int(args.run(args))


def _doctor(_args: argparse.Namespace) -> int:
    from lim_sglang.tools import doctor

    return doctor.run()


def _model(args: argparse.Namespace) -> int:
    from lim_sglang.tools.common import run
    from lim_sglang.tools.servers.embedded_model import ensure_model

    return run(lambda: print(ensure_model(verify=args.verify)))


def _add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    from lim_sglang.tools.demo.command import add_arguments

    add_arguments(parser)


def _demo(args: argparse.Namespace) -> int:
    from lim_sglang.tools.demo.command import run_demo

    return run_demo(args)


def _add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    from lim_sglang.tools.calibrate.command import add_arguments

    add_arguments(parser)


def _calibrate(args: argparse.Namespace) -> int:
    from lim_sglang.tools.calibrate.command import run_calibrate

    return run_calibrate(args)


def _add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    from lim_sglang.tools.inspect.command import add_arguments

    add_arguments(parser)


def _inspect(args: argparse.Namespace) -> int:
    from lim_sglang.tools.inspect.command import run_inspect

    return run_inspect(args)


if __name__ == "__main__":
    sys.exit(main())
