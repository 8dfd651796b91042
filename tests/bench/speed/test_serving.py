"""The serving comparison's flags, workloads, and what it says of a client that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.speed import serving
from lim_sglang.tools.servers.access import VARIABLE, AccessError, headers

from ...lim_sglang.info_server import serving as answering
from ...lim_sglang.recorded_state import LIM_AFTER

FIGURES = dict.fromkeys(serving.MEASURED, 1.5)


def parsed(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["serving.py", *words])
    return serving.parse()


def test_both_workloads_send_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    args = parsed(monkeypatch, "--launch", "--requests", "10", "--groups", "3", "--input", "512", "--output", "7")
    random_ids, shared = serving.workloads(args)
    assert (random_ids.size, shared.size) == (10, 9)
    options = dict(zip(shared.options[::2], shared.options[1::2], strict=True))
    assert options["--gsp-num-groups"] == options["--gsp-prompts-per-group"] == "3"
    assert options["--gsp-system-prompt-len"] == "512"
    assert options["--gsp-output-len"] == "7"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --launch, or both --server and --dense-server"),
        (["--launch", "--server", "http://a"], "either --launch, or both"),
        (["--server", "http://a", "--dense-server", "http://b", "--budget", "8"], "are for --launch"),
        (["--launch", "--rates", "0"], "--rates: 0: expected numbers above 0, or inf"),
    ],
)
def test_bad_flags_get_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        parsed(monkeypatch, *words)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_server_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(sys, "argv", ["s.py", "--server", nowhere, "--dense-server", nowhere, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        serving.main()
    assert f"lim-sglang: error: no SGLang server answers at {nowhere}: " in capsys.readouterr().err


@pytest.mark.parametrize(("attention", "lim"), [("lim", False), ("dense", True)])
def test_a_server_of_the_other_kind_is_refused(monkeypatch: pytest.MonkeyPatch, attention: str, lim: bool) -> None:
    args = parsed(monkeypatch, "--server", "http://a/", "--dense-server", "http://b/")
    monkeypatch.setattr(serving, "serves_lim", lambda *_: lim)
    expected = rf"^http://[ab] does not serve with {attention} attention; fix: name another server$"
    with pytest.raises(serving.ServingError, match=expected), serving.server(attention, args, Console()):
        pytest.fail("it was taken")


INFO = {"/server_info": {"internal_states": [{"lim": LIM_AFTER}]}, "/flush_cache": "flushed", "/v1/models": {}}


def test_a_server_that_wants_a_key_gets_it_or_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with answering(INFO, key="secret") as server:
        words = ["--server", server.url, "--dense-server", server.url]
        args = parsed(monkeypatch, *words, "--api-key", "secret")
        with serving.server("lim", args, Console()) as (url, key):
            serving.check_flush(url, key)
            assert serving.last_words(url, "it said so", key) == "it said so"
        with pytest.raises(AccessError, match=f"^{server.url} wants a key"):
            serving.serves_lim(server.url)
        with pytest.raises(AccessError, match=f"^{server.url} wants another key"):
            serving.serves_lim(server.url, "other")


def test_a_cache_that_cannot_be_flushed_is_refused() -> None:
    refusal = r"does not let this client flush its cache \(HTTP 401\)"
    with (
        answering(INFO, key="secret", admin_key="boss") as server,
        pytest.raises(serving.ServingError, match=refusal),
    ):
        serving.check_flush(server.url, "secret")
    with answering(INFO, admin_key="boss") as server:
        serving.check_flush(server.url, "boss")


def test_the_client_finds_the_key_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        seen.append(options["env"])
        assert "secret" not in " ".join(command)
        Path(command[command.index("--output-file") + 1]).write_text(json.dumps(FIGURES | {"completed": 3}))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(serving.subprocess, "run", run)
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    args = parsed(monkeypatch, "--launch")
    for key in ("secret", None):
        serving.run_client("http://a", serving.Workload("w", 3, ()), "inf", args, key)
    assert [env["OPENAI_API_KEY"] for env in seen] == ["secret", "other"]


def test_sglangs_client_looks_for_the_key_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.benchmark.serving import get_auth_headers

    monkeypatch.setenv(VARIABLE, "secret")
    assert get_auth_headers() == headers("secret")
