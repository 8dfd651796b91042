"""The process in which math-verify works: one request a line on stdin, one answer a line on stdout, both JSON.

It stands alone, as it is run by its path. An expression can keep sympy busy in one call for ever, where no exception of
Python's arrives; so the kernel ends the whole process once it has worked for as long as it may, and
``algebra.py`` starts another.
"""

import json
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from math_verify.parser import NormalizationConfig
from sympy import Basic, Expr, Float, I, Interval, Rational, Symbol, Union, simplify
from sympy import FiniteSet as SympySet
from sympy.core.relational import Equality, Relational

_MEMORY = 4 << 30
# Units are not its business: it takes the last factor of "2t" or "6m" for one.
_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=False, nits=True, boxed="none", equations=False
)
_LATEX = LatexExtractionConfig(normalization_config=_NORMALIZATION)


def main() -> None:
    limit = float(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        name, *texts = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, limit)
        try:
            answer = REQUESTS[name](*texts)
        except Exception:  # whatever a text makes of the parser, it has no answer
            answer = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), file=answers, flush=True)


def equal(expected: str, found: str) -> bool:
    """Whether two texts of mathematics say the same; False where one of them cannot be read."""
    sides = _parsed(expected), _parsed(found)
    if None in sides:
        return False
    return not _apart(*sides) and bool(
        verify(*map(_as_set, sides), float_rounding=12, allow_set_relation_comp=True, timeout_seconds=None)
    )


def value(text: str) -> str | None:
    """The rational number that an expression comes to, as ``73`` or ``3/4``; None if it comes to something else."""
    read = _parsed(text)
    if not isinstance(read, Basic) or read.free_symbols or not read.is_number:
        return None
    exact = simplify(read.doit().xreplace({part: Rational(str(part)) for part in read.atoms(Float)}))
    return str(exact) if exact.is_Rational else None


def _parsed(text: str) -> Any:
    found = parse(f"${text}$", [_LATEX], fallback_mode="no_fallback", parsing_timeout=None)
    return _with_alike_names(found[0]) if found else None


def _with_alike_names(read: Any) -> Any:
    """Every letter as a real one and ``i`` as the imaginary unit: the parser takes them now for this, now for that."""
    names = {name: I if name.name == "i" else Symbol(name.name, real=True) for name in read.free_symbols}
    try:
        return read.xreplace(names) if any(name != other for name, other in names.items()) else read
    except TypeError:  # i < n
        return read


def _apart(one: Any, other: Any) -> bool:
    """Whether two numbers differ, however small they are; math-verify looks at the first digits of their difference."""
    if not all(
        isinstance(side, Expr) and side.is_number and side.is_finite and not side.atoms(Float) for side in (one, other)
    ):
        return False
    one, other = one.doit(), other.doit()
    if one.is_Rational and other.is_Rational:
        return bool(one != other)
    if 0 in (one, other):
        return False
    return bool(abs((one / other).evalf(30) - 1) > Rational(1, 10**20))


def _as_set(read: Any) -> Any:
    """Inequalities joined by "or" as the set of what satisfies them; anything else as it is."""
    parts = read.args if isinstance(read, SympySet) else ()
    if (
        len(parts) > 1
        and len(read.free_symbols) == 1
        and all(isinstance(part, Relational) and not isinstance(part, Equality) for part in parts)
    ):
        sets = [part.as_set() for part in parts]
        if all(isinstance(part, Interval) for part in sets):
            return Union(*sets)
    return read


REQUESTS: dict[str, Callable[..., bool | str | None]] = {"equal": equal, "value": value}

if __name__ == "__main__":
    main()
