"""All patches, by when they are applied; ``patches/README.md`` says why there are any."""

from __future__ import annotations

from lim_patches.cpu import (
    gated_norm,
    grammar_mask,
    last_slot,
    request_values,
    scaling_penalties,
    shared_expert_gate,
    support_triton,
)
from lim_patches.lossless import drop_behind_end, finish_by_token, room_for_rounds, stale_copies, top_logprobs
from lim_patches.patch import Patch
from lim_patches.start import add_cli_args, check_server_args, from_cli_args, internal_state

START: tuple[Patch, ...] = (
    add_cli_args.PATCH,
    from_cli_args.PATCH,
    check_server_args.PATCH,
    internal_state.PATCH,
    support_triton.PATCH,
    *grammar_mask.PATCHES,
    scaling_penalties.PATCH,
    last_slot.PATCH,
    *gated_norm.PATCHES,
    *shared_expert_gate.PATCHES,
)
"""When the plugin registers, in every process that wants them."""
LAUNCH: tuple[Patch, ...] = (*request_values.PATCHES, top_logprobs.PATCH)
"""When launch options have passed, by the hook of ``check_server_args``; the last one for the lossless mode only."""
LOSSLESS: tuple[Patch, ...] = (
    finish_by_token.PATCH,
    drop_behind_end.PATCH,
    room_for_rounds.PATCH,
    *stale_copies.PATCHES,
)
"""When SGLang asks for the lossless mode's worker."""
PATCHES = START + LAUNCH + LOSSLESS
