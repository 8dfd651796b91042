"""The patches on SGLang, in the order in which they are registered."""

from __future__ import annotations

from lim_patches import add_cli_args, check_server_args, from_cli_args, internal_state, support_triton
from lim_patches.patch import Patch

PATCHES: tuple[Patch, ...] = (
    add_cli_args.PATCH,
    from_cli_args.PATCH,
    check_server_args.PATCH,
    internal_state.PATCH,
    support_triton.PATCH,
)


def not_applied() -> list[str]:
    """Targets of wanted patches that SGLang could not patch in this process."""
    return [patch.target for patch in PATCHES if patch.wanted and not patch.applied]
