"""What the lossless mode refuses, and what it makes of options that were left open."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lim_sglang.host import compat
from lim_sglang.host.finders import DEFAULT_WIDTH, width_by_token
from lim_sglang.host.launch import check_launch
from lim_sglang.host.refusals import UnsupportedError

from .conftest import CommandLine, ErrorLine, Launch
from .tiny_llama import LLAMA

ON = "--speculative-algorithm LIM --device cpu"
REFUSED = {
    "width 1": ("--speculative-num-draft-tokens 1", "--speculative-num-draft-tokens 1", "use 2 to 16, or leave it out"),
    "width 17": ("--speculative-num-draft-tokens 17", "--speculative-num-draft-tokens 17", "use 2 to 16"),
    "width 9 of single tokens": (
        "--speculative-num-draft-tokens 9",
        "--speculative-num-draft-tokens 9 with --page-size 1",
        "use 2 to 8, or a larger --page-size",
    ),
    "steps": ("--speculative-num-steps 3", "--speculative-num-steps 3", "leave out --speculative-num-steps"),
    "tree": ("--speculative-eagle-topk 4", "--speculative-eagle-topk 4", "leave it out"),
    "draft model": ("--speculative-draft-model-path x", "--speculative-draft-model-path x", "leave it out"),
    "lossy": (
        "--speculative-accept-threshold-single 0.5",
        "--speculative-accept-threshold-single 0.5",
        "accepts exactly",
    ),
    "pipeline": ("--pp-size 2", "--pp-size 2", "no stage holds all layers"),
    "DP attention": ("--tp-size 2 --dp-size 2 --enable-dp-attention", "DP attention", "leave it out"),
    "LoRA": ("--enable-lora", "--enable-lora", "leave out --enable-lora"),
    "mixed": ("--enable-mixed-chunk", "--enable-mixed-chunk", "as many tokens for every request"),
    "hidden states": ("--enable-return-hidden-states", "--enable-return-hidden-states", "leave out"),
    "another algorithm": ("--speculative-algorithm NGRAM", "--speculative-algorithm NGRAM", "or use LIM"),
    "decode only": (
        "--prefill-attention-backend torch_native",
        "the attention backend torch_native",
        "for prefill and decode",
    ),
}


@pytest.mark.parametrize(("flags", "found", "said"), REFUSED.values(), ids=REFUSED)
def test_one_line_on_the_command_line(
    command_line: CommandLine, error_line: ErrorLine, flags: str, found: str, said: str
) -> None:
    line = error_line(command_line, {}, f"{ON} {flags}")
    assert line.startswith(f"lim-sglang: error: {found} does not work with lim: ")
    assert said in line


@pytest.mark.parametrize(
    "flags", ["", "--speculative-num-draft-tokens 2", "--speculative-num-draft-tokens 8", "--tp-size 2"]
)
def test_accepted(command_line: CommandLine, flags: str) -> None:
    command_line({}, f"{ON} {flags}")
    command_line({}, f"{ON.replace('LIM', 'lim')} {flags}")


def test_without_lim_as_attention_backend_it_is_one_line(tmp_path: Path, error_line: ErrorLine) -> None:
    from sglang.srt.server_args import prepare_server_args

    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    line = error_line(prepare_server_args, ["--model-path", str(tmp_path), *ON.split()])
    assert "lim drafts, and dense attention of the same backend verifies; add --attention-backend lim" in line


def test_an_engine_is_told_likewise(launch: Launch) -> None:
    with pytest.raises(UnsupportedError, match="add --attention-backend lim"):
        check_launch(launch(attention_backend="torch_native", speculative_algorithm="LIM"))


def resolved(server_args: Any) -> tuple[Any, ...]:
    args = compat.effective_args(server_args)
    names = ("num_draft_tokens", "num_steps", "eagle_topk")
    return *(getattr(args, f"speculative_{name}") for name in names), args.disable_overlap_schedule


def test_what_is_left_open_is_resolved(launch: Launch) -> None:
    server_args = launch(speculative_algorithm="LIM")
    check_launch(server_args)
    assert resolved(server_args) == (DEFAULT_WIDTH, DEFAULT_WIDTH - 1, 1, True)
    server_args = launch(speculative_algorithm="lim", speculative_num_draft_tokens=5)
    check_launch(server_args)
    assert resolved(server_args) == (5, 4, 1, True)


def test_how_many_requests_run_is_said_unless_it_was_asked_for(
    launch: Launch, caplog: pytest.LogCaptureFixture
) -> None:
    found = {}
    for asked in (200, None):
        with caplog.at_level("WARNING", logger="lim_sglang"):
            args = compat.effective_args(launch(speculative_algorithm="LIM", max_running_requests=asked))
        found[args.max_running_requests] = [m for m in caplog.messages if m.startswith("lim:")]
        caplog.clear()
    assert found == {200: [], 48: ["lim: 48 requests run at a time; more with --max-running-requests"]}


def test_wide_rounds_fit_larger_pages(launch: Launch) -> None:
    for width, page, fits in ((8, 1, True), (9, 1, False), (9, None, False), (16, 16, True), (None, None, True)):
        args = SimpleNamespace(speculative_num_draft_tokens=width, page_size=page)
        assert (not width_by_token(args, None)) == fits, (width, page)
