"""A server that wants a key gets it, or the user is told so."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.reasoning import __main__ as reasoning

from .stub_server import Stub, arguments, lim_info, records, refused


@pytest.fixture(autouse=True)
def no_key_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_a_server_that_wants_a_key_says_so(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.key = "secret"
    line = refused(arguments(stub, tmp_path / "o"), capsys)
    assert f"{stub.url} wants a key (HTTP 401); fix: give its own by --api-key or OPENAI_API_KEY" in line
    line = refused(arguments(stub, tmp_path / "o", "--api-key", "other"), capsys)
    assert f"{stub.url} wants another key than the one sent (HTTP 401); fix: correct --api-key" in line
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("place", ["flag", "environment"])
def test_every_request_carries_the_key(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    stub.key, stub.info = "secret", lim_info(7)
    if place == "environment":
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr("sys.argv", ["bench.reasoning", "--api-key", "secret"])  # which the summary quotes
    reasoning.main(arguments(stub, tmp_path, *(["--api-key", "secret"] if place == "flag" else [])))
    assert len(stub.asked) == 6
    assert [r["error"] for r in records(tmp_path)] == [None] * 6
    assert "SPARSE" in capsys.readouterr().out, "the state of lim was read, too"
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "secret" not in written


def test_a_key_that_cannot_be_sent_is_one_line(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the key of --api-key has spaces" in refused(arguments(stub, tmp_path, "--api-key", "a b"), capsys)


def test_a_server_whose_ranks_disagree_is_no_dense_one(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.info = lim_info(7)
    stub.info["internal_states"].append({})
    assert '1 of 2 ranks report "lim"' in refused(arguments(stub, tmp_path), capsys)
