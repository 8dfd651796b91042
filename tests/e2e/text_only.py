"""An SGLang plugin: an image-text model is served without its images, for which its folder would need a processor.

Programs ask for that by ``enable_multimodal=False``; the command line has no such flag.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any


def register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register("sglang.srt.server_args.ServerArgs.from_cli_args", without_images, HookType.AROUND)


def without_images(original: Callable[..., Any], cls: type, args: Namespace) -> Any:
    args.enable_multimodal = False
    return original(cls, args)
