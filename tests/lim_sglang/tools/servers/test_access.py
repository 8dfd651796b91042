"""Keys: where they come from, what a server wants, and what a client without one is told."""

from __future__ import annotations

import argparse
from pathlib import Path

import httpx
import pytest

from lim_sglang.tools.servers.access import (
    AccessError,
    add_key_argument,
    check_access,
    headers,
    key_of,
    server_key,
    without_keys,
)
from lim_sglang.tools.servers.process import ServerProcess


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_key_argument(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "environ", "key"),
    [
        ([], {}, None),
        ([], {"OPENAI_API_KEY": "env"}, "env"),
        (["--api-key", "flag"], {"OPENAI_API_KEY": "env"}, "flag"),
        (["--api-key", ""], {"OPENAI_API_KEY": "env"}, None),
    ],
)
def test_the_flag_comes_before_the_environment(words: list[str], environ: dict[str, str], key: str | None) -> None:
    assert key_of(parsed(*words), environ) == key


@pytest.mark.parametrize("key", ["se cret", "secret\n", "sécret"])
def test_a_key_that_no_header_takes_is_refused_and_kept_secret(key: str) -> None:
    for words, environ, place in (
        (["--api-key", key], {}, "--api-key"),
        ([], {"OPENAI_API_KEY": key}, "OPENAI_API_KEY"),
    ):
        with pytest.raises(AccessError, match=f"key of {place} .*; fix: ASCII") as refused:
            key_of(parsed(*words), environ)
        assert "cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["--dtype", "float32"], None),
        (["--api-key=a", "--api-key", "b"], "b"),
        (["--api", "a"], "a"),
        (["--admin-api-key", "b", "--api-key", "a"], "a"),
        (["--api-key"], None),
        (["--a", "x"], None),
    ],
)
def test_a_server_knows_its_key(options: list[str], key: str | None) -> None:
    assert server_key(options) == key
    assert ServerProcess("model", options, log_path=Path("log")).key == key


def test_a_refusal_is_told_with_its_fix() -> None:
    with pytest.raises(AccessError, match=r"^http://h wants a key \(HTTP 401\); fix: .*--api-key or OPENAI_API_KEY$"):
        check_access(httpx.Response(401), "http://h", None)
    with pytest.raises(AccessError, match=r"^http://h wants another key than the one sent .* --api-key or") as refused:
        check_access(httpx.Response(403), "http://h", "secret")
    assert "secret" not in str(refused.value)


def test_other_answers_pass() -> None:
    for status in (200, 404, 500):
        assert check_access(httpx.Response(status), "http://h", None).status_code == status
    assert headers("k") == {"Authorization": "Bearer k"}
    assert headers(None) == {}


@pytest.mark.parametrize(
    ("command", "written"),
    [
        (["--api-key", "two words", "--out", "o"], ["--api-key", "***", "--out", "o"]),
        (["--api-key=k"], ["--api-key=***"]),
        (["--server-arg", "--admin-api-key k --page-size 1"], ["--server-arg", "--admin-api-key *** --page-size 1"]),
        (["--ap", "k", "--a=k", "--attention", "lim"], ["--ap", "***", "--a=***", "--attention", "lim"]),
        (["--server-arg=--admin k --attention-backend lim"], ["--server-arg=--admin *** --attention-backend lim"]),
    ],
)
def test_no_key_is_written_to_a_file(command: list[str], written: list[str]) -> None:
    assert without_keys(command) == written
