"""Agreement of a run with the dense run of the same problem."""

from __future__ import annotations

from bench.programs.compare import agreement


def test_agreement_is_the_share_before_the_first_difference_of_a_chain() -> None:
    assert agreement([["abcd", "efgh"]], [["abcd", "efgh"]]) == 1.0
    assert agreement([["abcd", "efgh"]], [["abcd", "efXh"]]) == 6 / 8
    # What follows a difference does not count, equal or not.
    assert agreement([["abcd", "efgh"]], [["Xbcd", "efgh"]]) == 0.0


def test_chains_are_independent() -> None:
    assert agreement([["abcd"], ["efgh"]], [["Xbcd"], ["efgh"]]) == 0.5


def test_a_text_that_ends_earlier_ends_the_agreement() -> None:
    assert agreement([["ab", "ef"]], [["abcd", "ef"]]) == 2 / 6


def test_what_only_one_has_counts_as_different() -> None:
    assert agreement([["ab"], ["cd"]], [["ab"]]) == 0.5
    assert agreement([["ab"]], [["ab", "cd"]]) == 0.5
    assert agreement([], []) == 1.0
