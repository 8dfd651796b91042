"""What the model reads after a call of the calculator: the right value, or why there is none."""

from __future__ import annotations

import pytest

from bench.programs.tool_loop import use_tool

SAID = {
    "25 * 81": " = 2025",
    "2 + 3 * 4": " = 14",
    "(2 + 3) * -4": " = -20",
    "7 / 2": " = 3.5",
    "6 / 2": " = 3",
    "7 // 2": " = 3",
    "-7 % 3": " = 2",
    "1 / 3": " = 0.3333333333",
    "12345678901 + 1": " = 12345678902",
    " 4 ": " = 4",
    "25 times 81": " failed: not arithmetic.",
    "__import__('os').system('true')": " failed: not arithmetic.",
    "'a' * 9": " failed: not arithmetic.",
    "9 ** 9": " failed: not arithmetic.",
    "": " failed: not arithmetic.",
    "\0": " failed: not arithmetic.",
    "(" * 250 + "1" + ")" * 250: " failed: not arithmetic.",
    "1 / 0": " failed: division by zero.",
    "99999999 * 99999999": " failed: a number above 1e+15.",
    "1e400 - 1e400": " failed: a number above 1e+15.",
}


@pytest.mark.parametrize(("call", "said"), SAID.items())
def test_the_model_reads_the_result_or_the_refusal(call: str, said: str) -> None:
    assert use_tool(call) == said
