"""The table of names by release: what is missing where, what is about to go, and what that does to CI."""

from __future__ import annotations

import importlib
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from lim_sglang.host.host_check import HostName

sys.path.append(str(Path(__file__).parents[1] / ".ci"))
drift = importlib.import_module("drift")


def release(folder: Path, number: str, source: str, options: str) -> None:
    """A wheel of a made-up SGLang, and what it declares in a namespace of its own."""
    files = {"sglang/srt/host.py": source, "sglang/srt/server_args.py": "class ServerArgs:\n    pass\n"}
    files["sglang/srt/arg_groups/fields/device.py"] = f"class Device:\n    {options}: str\n"
    with zipfile.ZipFile(folder / f"sglang-{number}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str] | None]:
    """Three releases: all there, a parameter less, a name and an option less; and one without a wheel."""
    names = (HostName("sglang.srt.host", "serve", ("port",)), HostName("sglang.srt.host", "Pool.size"))
    monkeypatch.setattr(drift, "HOST_NAMES", names)
    monkeypatch.setattr(drift, "SERVER_ARGS_FIELDS", ("device",))
    monkeypatch.setattr(drift, "COUNT", 3)
    monkeypatch.setattr(drift, "PIP", ["true"])
    release(tmp_path, "1.0", "def serve(port): ...\nclass Pool:\n    size = 1\n", "device")
    release(tmp_path, "1.1", "def serve(address): ...\nclass Pool:\n    size = 1\n", "device")
    release(tmp_path, "1.2", "def serve(port): ...\nclass Pool: ...\n", "kind")
    return {number: drift.problems(number, tmp_path) for number in ("1.0", "1.1", "1.2", "1.3")}


def test_every_release_is_read_by_itself(found: dict[str, dict[str, str] | None]) -> None:
    assert found == {
        "1.0": {},
        "1.1": {"sglang.srt.host.serve": "takes no parameter port"},
        "1.2": {"sglang.srt.host.Pool.size": "no size in sglang.srt.host.Pool", "ServerArgs.device": "no such option"},
        "1.3": None,
    }


def test_the_report_says_which_names_are_about_to_go(
    found: dict[str, dict[str, str] | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "TESTED", ("1.0",))
    text = "\n".join(drift.report(found))
    for line in ("1.0 (tested): 3 of 3 names", "1.1: 2 of 3 names", "1.2: 1 of 3 names", "1.3: no wheel could be had"):
        assert f"drift: {line}" in text
    assert "| sglang.srt.host.serve |  | takes no parameter port |  |" in text
    going = [line.rsplit(": ", 1)[1] for line in text.splitlines() if "about to go" in line]
    assert going == ["ServerArgs.device", "sglang.srt.host.Pool.size"]


def test_only_a_tested_release_that_lacks_a_name_or_was_not_read_fails(
    found: dict[str, dict[str, str] | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "releases", lambda _oldest: list(found))
    monkeypatch.setattr(drift, "problems", lambda number, _folder: found[number])
    for tested, code in ((["1.0"], 0), (["1.0", "1.1"], 1), (["1.0", "1.3"], 1), (["1.0", "1.4"], 1)):
        monkeypatch.setattr(drift, "TESTED", tested)
        assert drift.main("1.0") == code, tested


def test_an_index_that_cannot_be_asked_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drift, "PIP", ["false"])
    assert drift.main("0.5.16") == 0
    assert capsys.readouterr().out == "drift: the index could not be asked\n"


def test_releases_from_the_oldest_on_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "sglang (0.5.20)\nAvailable versions: 0.5.20, 0.5.16.post1, 0.5.9, 0.5.16, 0.5.15\n"
    monkeypatch.setattr(drift.subprocess, "run", lambda *_args, **_options: SimpleNamespace(stdout=said))
    assert drift.releases("0.5.16") == ["0.5.16", "0.5.16.post1", "0.5.20"]
