"""Arithmetic that the calculator gets right, and text that it refuses."""

from __future__ import annotations

import pytest

from bench.programs.calculator import CalculatorError, calculate

RIGHT = {
    "12 * 30": "360",
    "2 + 3 * 4": "14",
    "(2 + 3) * -4": "-20",
    "7 / 2": "3.5",
    "7 // 2": "3",
    "-7 % 3": "2",
    "1 / 3": "0.3333333333",
    " 4 ": "4",
}


@pytest.mark.parametrize(("text", "value"), RIGHT.items())
def test_the_calculator_is_right(text: str, value: str) -> None:
    assert calculate(text) == value


REFUSED = {
    "__import__('os').system('true')": "not arithmetic",
    "(1).real": "not arithmetic",
    "'a' * 9": "not arithmetic",
    "True + 1": "not arithmetic",
    "9 ** 9": "not arithmetic",
    "1 << 60": "not arithmetic",
    "": "not arithmetic",
    "\0": "not arithmetic",
    "1 / 0": "division by zero",
    "99999999 * 99999999": "a number above",
    "1e400": "a number above",
    "1e400 - 1e400": "a number above",
    "(" * 150 + "1" + ")" * 49: "not arithmetic",
    "1+" * 150 + "1": "longer than 200",
}


@pytest.mark.parametrize(("text", "why"), REFUSED.items())
def test_the_calculator_refuses(text: str, why: str) -> None:
    with pytest.raises(CalculatorError, match=why):
        calculate(text)
