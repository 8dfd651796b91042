"""A tool loop: over many turns the model writes a call of a calculator, reads the result and says what it means.

    python -m bench.programs.tool_loop --server http://127.0.0.1:30000 --turns 20

The call is what stands between `calc(` and `)`; it is parsed as arithmetic and refused otherwise, and the model reads
the refusal in place of a result.
"""

from __future__ import annotations

import argparse
import ast
import operator
import sys
from collections.abc import Callable
from random import Random
from typing import Any

import sglang as sgl

from bench.programs.common import Outcome, Show, run_alone, whole
from bench.programs.metering import MeteredEndpoint

SYSTEM = "You answer with one call of the calculator, then one sentence about its result."
EXAMPLES = (
    ("A crate holds 12 jars. How many jars are in 30 crates?", "calc(12 * 30) = 360\nThere are 360 jars."),
    ("Now 15 of 360 jars break. How many are left?", "calc(360 - 15) = 345\n345 jars are left."),
)
LARGEST = 10**15
OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
ITEMS = ("jars", "lamps", "books", "bolts", "plates")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--turns", type=whole(1, 1000), default=6, help="questions asked in one conversation (6)")


def questions(seed: int, turns: int) -> list[str]:
    rng = Random(f"tool loop {seed}")
    draws = [(rng.choice(ITEMS), rng.randint(11, 99), rng.randint(3, 29)) for _ in range(turns)]
    shapes = ("A crate holds {1} {0}. How many {0} are in {2} crates?", "{2} of {1} {0} break. How many {0} are left?")
    return [shapes[turn % 2].format(*draw) for turn, draw in enumerate(draws)]


@sgl.function
def tool_loop(s: Any, asked: list[str]) -> list[dict[str, str]]:
    s += sgl.system(SYSTEM)
    for question, answer in EXAMPLES:
        s += sgl.user(question) + sgl.assistant(answer)
    calls = []
    for turn, question in enumerate(asked):
        s += sgl.user(question) + sgl.assistant_begin()
        s += "calc(" + sgl.gen(f"call {turn}", max_tokens=24, stop=[")", "\n"]) + ")"
        call = s[f"call {turn}"]
        result = use_tool(call)
        s += f"{result}\n" + sgl.gen(f"say {turn}", stop="\n") + sgl.assistant_end()
        calls.append({"call": call, "result": result, "says": s[f"say {turn}"]})
    return calls


def use_tool(call: str) -> str:
    """What is inserted after the call: its value, or why there is none. It is parsed, never evaluated as Python."""
    try:
        value = value_of(ast.parse(call.strip(), mode="eval").body)
    except ZeroDivisionError:
        return " failed: division by zero."
    except OverflowError:
        return f" failed: a number above {LARGEST:.0e}."
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return " failed: not arithmetic."
    return f" = {int(value)}" if value == int(value) else f" = {value:.10g}"


def value_of(node: ast.expr) -> float:
    """Of numbers, parentheses and ``+ - * / // %``; a ValueError is anything else, an OverflowError too large."""
    value: float
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = node.value  # type: ignore[assignment]
    elif isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        value = OPERATORS[type(node.op)](value_of(node.operand))
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        value = OPERATORS[type(node.op)](value_of(node.left), value_of(node.right))
    else:
        raise ValueError
    if not abs(value) <= LARGEST:  # nor is it with NaN
        raise OverflowError
    return value


def run(endpoint: MeteredEndpoint, args: argparse.Namespace, show: Show) -> Outcome:
    sampling = {"temperature": args.temperature, "max_new_tokens": args.max_tokens}
    state = tool_loop.run(questions(args.seed, args.turns), backend=endpoint, **sampling)
    transcript, calls = state.text(), state.ret_value
    texts = [text for call in calls for text in (call["call"], call["says"])]
    return Outcome(calls[-1]["result"].strip(" ="), [texts], transcript, {"calls": calls})


if __name__ == "__main__":
    run_alone(sys.modules[__name__], __doc__ or "")
