"""How commands end, and the values that their flags take."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lim_sglang.config import LimConfigError
from lim_sglang.tools.common import CommandError, integer, model_folder, run
from lim_sglang.tools.servers.embedded_model import EmbeddedModelError


def raising(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CommandError("no\nway"), 1, "lim-sglang: error: no way\n"),
        (EmbeddedModelError("no room"), 1, "lim-sglang: error: no room\n"),
        (RuntimeError("out of memory"), 1, "lim-sglang: error: out of memory\n"),
        (LimConfigError("--lim-budget 0 is not allowed"), 1, "lim-sglang: error: --budget 0 is not allowed\n"),
        (KeyboardInterrupt(), 130, "lim-sglang: error: interrupted\n"),
    ],
    ids=lambda part: type(part).__name__,
)
def test_a_mistake_is_one_line(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(raising(error))
    assert caught.value.code == code
    assert capsys.readouterr().err == line


def test_work_that_is_done_ends_with_0() -> None:
    done: list[int] = []
    assert run(lambda: done.append(1)) == 0
    assert done == [1]


def test_an_integer_in_its_range() -> None:
    assert [integer("--n", text, 1, 9) for text in ("1", "0007", "9")] == [1, 7, 9]
    assert integer("--n", "999999999", 1) == 999_999_999
    with pytest.raises(CommandError, match=r"^--n 0: expected an integer from 1 on; for example --n 64$"):
        integer("--n", "0", 1, example=64)


@pytest.mark.parametrize("text", ["0", "10", "-1", "1.5", "x", "", "²", "9999999999"])
def test_what_is_no_such_integer(text: str) -> None:
    with pytest.raises(
        CommandError, match=re.escape(f"--n {text}: expected an integer from 1 to 9; for example --n 9")
    ):
        integer("--n", text, 1, 9)


def test_a_models_folder(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=re.escape(f"--model {tmp_path} holds no config.json; give the folder")):
        model_folder("--model", str(tmp_path))
    (tmp_path / "config.json").touch()
    assert model_folder("--model", str(tmp_path)) == tmp_path
