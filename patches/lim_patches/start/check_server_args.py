"""Refuses what cannot work before SGLang starts a process for it."""

from __future__ import annotations

from typing import Any

from lim_patches import registry
from lim_patches.cpu import request_values
from lim_patches.lossless import top_logprobs
from lim_patches.patch import Patch
from lim_sglang.host.finders import asks_for_lossless
from lim_sglang.host.launch import check_launch, one_line_for_the_command_line


def check_lim(_result: Any, server_args: Any) -> None:
    check_launch(server_args)
    with one_line_for_the_command_line(server_args):
        registry.apply(request_values.PATCHES)
        if asks_for_lossless(server_args):
            registry.apply([top_logprobs.PATCH])


PATCH = Patch("sglang.srt.server_args.ServerArgs.check_server_args", check_lim, "after")
