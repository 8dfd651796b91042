"""Arithmetic on text that a model wrote. The text is parsed, never evaluated as Python."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

LONGEST = 200  # characters
LARGEST = 10**15

Number = int | float
_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class CalculatorError(ValueError):
    """The text is no arithmetic, or has no result; the message is a few words, for the model to read."""


def calculate(text: str) -> str:
    """The value of numbers, parentheses and ``+ - * / // %``; whole results without a fraction.

    Raises:
        CalculatorError: anything else, too long or too large.
    """
    if len(text) > LONGEST:
        raise CalculatorError(f"longer than {LONGEST} characters")
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body)
    except ZeroDivisionError as error:
        raise CalculatorError("division by zero") from error
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        if isinstance(error, CalculatorError):
            raise
        raise CalculatorError("not arithmetic") from error
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else f"{value:.10g}" if isinstance(value, float) else str(value)


def _value(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _bounded(_BINARY[type(node.op)](_value(node.left), _value(node.right)))
    raise CalculatorError("not arithmetic")


def _bounded(value: Number) -> Number:
    if not abs(value) <= LARGEST:
        raise CalculatorError(f"a number above {LARGEST:.0e}")
    return value
