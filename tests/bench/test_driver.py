"""What every bench writes and says: files that hold each row at once, and what a result says about its run."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from bench import driver

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("script", "shown"),
    [("programs/__main__.py", "-m bench.programs"), ("speed/serving.py", "-m bench.speed.serving")],
)
def test_the_command_names_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch, script: str, shown: str) -> None:
    monkeypatch.setattr("sys.argv", [f"{ROOT}/bench/{script}", "--repeats", "2"])
    assert driver.about()["command"] == f"python {shown} --repeats 2"


def test_the_command_keeps_keys_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--api-key", "k1", "--api-key=k2", "--server-arg", "--admin-api-key k3", "--repeats", "2"]
    monkeypatch.setattr("sys.argv", ["/elsewhere/run.py", *words])
    command = shlex.split(driver.about()["command"])
    hidden = ["--api-key", "***", "--api-key=***", "--server-arg", "--admin-api-key ***", "--repeats", "2"]
    assert command == ["python", "/elsewhere/run.py", *hidden]


def test_the_command_is_one_for_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/elsewhere/run.py", "--server-arg", "--page-size 1"])
    monkeypatch.setenv("SGLANG_LIM_DRAFTS", "always")
    monkeypatch.setenv("SGLANG_LIM_CONFIG", '{"budget": 256}')
    settings = """SGLANG_LIM_CONFIG='{"budget": 256}' SGLANG_LIM_DRAFTS=always"""
    assert driver.about()["command"] == f"{settings} python /elsewhere/run.py --server-arg '--page-size 1'"


def test_a_machine_without_git_has_an_unknown_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_args: object, **_more: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.delenv("LIM_COMMIT", raising=False)
    assert driver.about()["commit"] == "unknown"
    monkeypatch.setenv("LIM_COMMIT", "abc")
    assert driver.about()["commit"] == "abc"


def test_a_file_of_rows_holds_each_at_once(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "found.csv"
    with driver.row_writer(path, ["a", "b"]) as add:
        add({"a": 1, "b": "x, y"})
        assert driver.read_rows(path) == [{"a": "1", "b": "x, y"}]
        add({"a": 2})
    assert driver.read_rows(path)[1] == {"a": "2", "b": ""}
    assert driver.read_rows(tmp_path / "none.csv") == []


def test_rows_without_a_speed_end_the_run() -> None:
    driver.exit_on_problems([{"speedup": 1.5}])
    with pytest.raises(SystemExit, match=r"^error: unsteady and wrong tokens: those rows tell no speed$"):
        driver.exit_on_problems([{"speedup": "wrong tokens"}, {"speedup": 1.5}, {"speedup": "unsteady"}])
