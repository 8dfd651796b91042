"""What a result says about its run."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from bench import timing

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        (str(ROOT / "bench" / "programs" / "__main__.py"), "-m bench.programs"),
        (str(ROOT / "bench" / "speed" / "serving.py"), "-m bench.speed.serving"),
        ("/elsewhere/run.py", "/elsewhere/run.py"),
    ],
)
def test_the_command_names_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch, script: str, shown: str) -> None:
    monkeypatch.setattr("sys.argv", [script, "--repeats", "2"])
    assert timing.about()["command"] == f"python {shown} --repeats 2"


def test_the_command_keeps_keys_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--api-key", "k1", "--api-key=k2", "--server-arg", "--admin-api-key k3", "--repeats", "2"]
    monkeypatch.setattr("sys.argv", ["/elsewhere/run.py", *words])
    command = shlex.split(timing.about()["command"])
    hidden = ["--api-key", "***", "--api-key=***", "--server-arg", "--admin-api-key ***", "--repeats", "2"]
    assert command == ["python", "/elsewhere/run.py", *hidden]


def test_the_command_is_one_for_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/elsewhere/run.py", "--server-arg", "--page-size 1"])
    monkeypatch.setenv("SGLANG_LIM_DRAFTS", "always")
    monkeypatch.setenv("SGLANG_LIM_CONFIG", '{"budget": 256}')
    settings = """SGLANG_LIM_CONFIG='{"budget": 256}' SGLANG_LIM_DRAFTS=always"""
    assert timing.about()["command"] == f"{settings} python /elsewhere/run.py --server-arg '--page-size 1'"


def test_a_machine_without_git_has_an_unknown_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_args: object, **_more: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.delenv("LIM_COMMIT", raising=False)
    assert timing.about()["commit"] == "unknown"
    monkeypatch.setenv("LIM_COMMIT", "abc")
    assert timing.about()["commit"] == "abc"
