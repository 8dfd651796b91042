"""The process in which math-verify works: two texts a line on stdin, one verdict a line on stdout, both JSON.

An expression can keep sympy busy in one call for ever, where no exception of Python's arrives; so the kernel ends the
whole process once it has worked for as long as it may, and ``algebra.py`` starts another.
"""

import json
import resource
import signal
import sys
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from math_verify.parser import NormalizationConfig
from sympy import Expr, Float, I, Rational, Symbol

# Units are not its business: it takes the last factor of "2t" or "6m" for one.
_LATEX = LatexExtractionConfig(
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, float(sys.argv[1]))
        try:
            answer = equal(*json.loads(line))
        except Exception:  # whatever a text makes of the parser, it is not the expected answer
            answer = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), file=answers, flush=True)


def equal(expected: str, found: str) -> bool:
    """Whether two texts of mathematics say the same; False where one of them cannot be read."""
    sides = _parsed(expected), _parsed(found)
    if None in sides or _apart(*sides):
        return False
    return bool(verify(*sides, float_rounding=12, allow_set_relation_comp=True, timeout_seconds=None))


def _parsed(text: str) -> Any:
    found = parse(f"${text}$", [_LATEX], fallback_mode="no_fallback", parsing_timeout=None)
    return _renamed(found[0]) if found else None


def _renamed(read: Any) -> Any:
    """Every letter as a real one and ``i`` as the imaginary unit: the parser takes them now for this, now for that."""
    names = {symbol: I if symbol.name == "i" else Symbol(symbol.name, real=True) for symbol in read.free_symbols}
    return read.xreplace(names)


def _apart(one: Any, other: Any) -> bool:
    """Whether two numbers differ; math-verify sees no tiny differences (huggingface/Math-Verify#14)."""
    if not all(
        isinstance(side, Expr) and side.is_number and side.is_finite and not side.atoms(Float) for side in (one, other)
    ):
        return False
    one, other = one.doit(), other.doit()
    if one.is_Rational and other.is_Rational:
        return bool(one != other)
    return 0 not in (one, other) and bool(abs((one / other).evalf(30) - 1) > Rational(1, 10**20))


if __name__ == "__main__":
    main()
