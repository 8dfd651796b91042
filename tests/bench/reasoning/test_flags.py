"""Flags that cannot work are refused before anything starts."""

from __future__ import annotations

import pytest

from bench.reasoning import __main__ as reasoning

FLAGS = {
    "no-server": (["--out", "o"], "--server --launch"),
    "server-without-scheme": (["--server", "localhost:30000", "--out", "o"], "'localhost:30000' is not a URL"),
    "data-without-kind": (["--launch", "--out", "o", "--data", "d"], "--data and --kind belong together"),
    "kind-without-data": (["--launch", "--out", "o", "--kind", "aime"], "--data and --kind belong together"),
    "budget-without-launch": (["--server", "http://x", "--out", "o", "--budget", "9"], "are for --launch"),
    "budget-of-dense": (["--launch", "--launch-backend", "torch_native", "--budget", "9", "--out", "o"], "has none"),
    "no-samples": (["--launch", "--out", "o", "--samples", "0"], "'0' is not a whole number above 0"),
    "cold": (["--launch", "--out", "o", "--temperature", "-1"], "'-1' is not a number from 0"),
    "nan": (["--launch", "--out", "o", "--temperature", "nan"], "'nan' is not a number"),
    "top-p-zero": (["--launch", "--out", "o", "--top-p", "0"], "'0' is not a number above 0 to 1"),
}


@pytest.mark.parametrize(("argv", "said"), FLAGS.values(), ids=FLAGS.keys())
def test_flags_that_cannot_work(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        reasoning.parse(argv)
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
