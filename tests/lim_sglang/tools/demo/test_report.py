"""What the demo shows: agreement with dense attention, and its tables."""

from __future__ import annotations

from typing import Any

import pytest

from lim_sglang.tools.common import CommandError
from lim_sglang.tools.demo.report import Turn, count_agreement, drafts_line, role_rows, turn_rows
from lim_sglang.tools.servers.state import counted_since

from ...recorded_state import LIM_AFTER, LIM_BEFORE


def generate_answer(given: list[int], best: list[int]) -> dict[str, Any]:
    """The shape of SGLang's /generate answer, whose first entry belongs to the prompt's last token."""
    return {
        "meta_info": {
            "input_token_logprobs": [[None, 99, None], *([-0.5, token, None] for token in given)],
            "input_top_logprobs": [None, *([[-0.1, token, None]] for token in best)],
        }
    }


def test_agreement_counts_equal_positions() -> None:
    assert count_agreement(generate_answer([4, 5, 6], [4, 7, 6]), [4, 5, 6]) == 2


@pytest.mark.parametrize("generated", [[4, 5], [4, 5, 7], [4, 5, 6, 6]])
def test_agreement_over_other_tokens_is_refused(generated: list[int]) -> None:
    with pytest.raises(CommandError, match="the dense server scored 3 tokens"):
        count_agreement(generate_answer([4, 5, 6], [4, 5, 6]), generated)


def test_turn_rows() -> None:
    exact = Turn(prompt_ids=[0] * 3528, output_ids=[0] * 41, cached_tokens=0, decode_seconds=2.0, text="")
    remade = Turn(
        prompt_ids=[0] * 3600, output_ids=[0] * 3, cached_tokens=3568, decode_seconds=0.0, text="", exact=False
    )
    assert turn_rows([exact, remade], [40, 3]) == [
        ("1", "3,528", "0", "41", "20.0", "40/41 (98%)"),
        ("2", "3,600", "3,568", "3", "0.0", "~3/3 (100%)"),
    ]


def test_role_rows_are_the_difference_of_two_states() -> None:
    assert role_rows(LIM_AFTER["plan"], counted_since(LIM_BEFORE, LIM_AFTER)) == [
        ("DENSE", "2", "80,000", "80,000", "100.0%"),
        ("SELECT", "2", "80,000", "80,000", "100.0%"),
        ("SPARSE", "26", "133,120", "1,040,000", "12.8%"),
        ("all", "30", "293,120", "1,200,000", "24.4%"),
    ]
    assert [row[4] for row in role_rows(LIM_AFTER["plan"], counted_since(LIM_AFTER, LIM_AFTER))] == ["-"] * 4


def test_drafts_line() -> None:
    totals = {"accepted_tokens": 1234, "drafted_tokens": 2000, "request_rounds": 400, "accepted_first_drafts": 390}
    assert drafts_line(totals).endswith(": 1,234 of 2,000 accepted, 3.08 per round, first_draft_acceptance 97.5%")
    assert drafts_line(dict.fromkeys(totals, 0)).endswith("no round")
