"""The patches on SGLang, in the order in which they are registered, and which of them this process was given."""

from __future__ import annotations

from lim_patches.cpu import grammar_mask, last_slot, request_values, scaling_penalties, support_triton
from lim_patches.lossless import finish_by_token, room_for_rounds
from lim_patches.patch import Patch
from lim_patches.start import add_cli_args, check_server_args, from_cli_args, internal_state

PATCHES: tuple[Patch, ...] = (
    add_cli_args.PATCH,
    from_cli_args.PATCH,
    check_server_args.PATCH,
    internal_state.PATCH,
    support_triton.PATCH,
    *grammar_mask.PATCHES,
    scaling_penalties.PATCH,
    last_slot.PATCH,
    *request_values.PATCHES,
    finish_by_token.PATCH,
    room_for_rounds.PATCH,
)
_registered: list[Patch] = []


def register() -> None:
    """Hand SGLang every patch that this process wants; decided once, whatever the process loads later."""
    if _registered:
        return
    for patch in PATCHES:
        if patch.wanted:
            patch.register()
            _registered.append(patch)


def is_registered(patch: Patch) -> bool:
    """Whether ``register`` found this patch wanted."""
    return patch in _registered


def not_applied() -> list[str]:
    """Targets of registered patches that SGLang could not patch in this process."""
    return [patch.target for patch in _registered if not patch.applied]
