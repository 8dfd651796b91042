"""The connection that the programs share: SGLang's RuntimeEndpoint, which here also notes what every request cost."""

from __future__ import annotations

import copy
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from sglang import RuntimeEndpoint
from sglang.lang.chat_template import chat_template_registry, get_chat_template

from lim_sglang.errors import PREFIX, one_line
from lim_sglang.tools.servers.access import AccessError, check_access, headers

CONNECT_SECONDS = 30.0
DEFAULT_TEMPLATE = "chatml"
_CHATML_MODELS = re.compile("smollm2|qwen3", re.I)  # which the frontend does not know by their names


class ProgramError(RuntimeError):
    """A program cannot go on; the message is one line."""


@dataclass(frozen=True)
class Request:
    """One request as the server counted it; times are of a monotonic clock.

    Attributes:
        kind: ``generate``; ``prefix``, a text that is only read into the cache; ``score``, one choice of a select.
        first: when the first token was there; None for a kind that generates none.
    """

    kind: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first: float | None
    ended: float


class MeteredEndpoint(RuntimeEndpoint):
    """A RuntimeEndpoint with a record of its requests and of the first one that failed.

    SGLang runs every state in a thread of its own and keeps that thread's exception to itself, and who then waits for
    the state waits forever. So the failure is noted here, where ``woken`` tells the one who can give up.
    """

    chat_template: Any

    def __init__(self, url: str, chat_template: str | None = None, key: str | None = None) -> None:
        super().__init__(url, api_key=key, chat_template_name=chat_template)
        if chat_template is None and self.chat_template.name == "default":  # the frontend goes by the model's path
            self.chat_template = get_chat_template(DEFAULT_TEMPLATE)
            if not _CHATML_MODELS.search(path := str(self.model_info["model_path"])):
                print(
                    f"{PREFIX}: chat template {DEFAULT_TEMPLATE}: the path {path} names no model that SGLang's "
                    "frontend knows; fix, if the model has another template: --chat-template NAME, as in "
                    "llama-3-instruct",
                    file=sys.stderr,
                )
        # join("concate_and_append") would ask for a route that servers no longer have; without it, it appends text.
        self.support_concate_and_append = False
        self._start_over()

    def _start_over(self) -> None:
        self.requests: list[Request] = []
        self.failure: Exception | None = None
        self.woken = threading.Event()
        self.cancelled = False

    def fresh(self) -> MeteredEndpoint:
        """The same connection with nothing on record, for one run of one program."""
        again = copy.copy(self)
        again._start_over()
        return again

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        """Stream under the hood: that tells prefill from decode, and a cancelled request ends at its next token."""
        pieces = list(self.generate_stream(s, sampling_params))
        return "".join(text for text, _ in pieces), pieces[-1][1]

    def generate_stream(self, s: Any, sampling_params: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        first, meta = None, None
        with self._noting_failure():
            self._check_cancelled()
            try:
                for piece, meta in super().generate_stream(s, sampling_params):
                    first = first or time.monotonic()
                    self._check_cancelled()
                    yield piece, meta
            except KeyError:  # a refusal in the stream's clothes; asked for plainly, the server says why
                super().generate(s, sampling_params)
                raise
            check_finished(meta)
            self._note("generate", meta or {}, first)

    def commit_lazy_operations(self, s: Any) -> None:
        self._generate_http_request(s, {"text": s.text_, "sampling_params": {"max_new_tokens": 0}})

    def select(self, *args: Any, **kwargs: Any) -> Any:
        with self._noting_failure():
            return super().select(*args, **kwargs)

    def _generate_http_request(self, s: Any, data: dict[str, Any]) -> Any:
        """Every request that generates nothing; a select's choices come as one list."""
        with self._noting_failure():
            self._check_cancelled()
            answer = super()._generate_http_request(s, data)
            for part in answer if isinstance(answer, list) else [answer]:
                self._note("score" if data.get("return_logprob") else "prefix", part["meta_info"])
        return answer

    def _note(self, kind: str, meta: Mapping[str, Any], first: float | None = None) -> None:
        prompt, cached, generated = (int(meta[f"{name}_tokens"]) for name in ("prompt", "cached", "completion"))
        self.requests.append(Request(kind, prompt, cached, generated, first, time.monotonic()))

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = self.failure or error
            self.woken.set()
            raise

    def _check_cancelled(self) -> None:
        if self.cancelled:
            raise ProgramError("cancelled")


def check_finished(meta: Mapping[str, Any] | None) -> None:
    """Refuse a generation that the server gave up or never ended."""
    reason = (meta or {}).get("finish_reason")
    if not reason or reason.get("type") == "abort":
        raise ProgramError(f"the server broke a generation off: {one_line(str((reason or {}).get('message')))}")


def connect(url: str, chat_template: str | None = None, key: str | None = None) -> MeteredEndpoint:
    """An endpoint of a server that answers, and wants ``key`` or none.

    Raises:
        ProgramError: nothing answers there, or no SGLang server, or it wants another key; no template has that name.
    """
    fix = "fix: start it, or correct --server"
    if chat_template is not None and chat_template not in chat_template_registry:
        known = ", ".join(sorted(chat_template_registry))
        raise ProgramError(f"--chat-template {chat_template} is no template of SGLang's frontend; fix: one of {known}")
    try:
        host = urlsplit(url).hostname or ""
        # SGLang's frontend obeys proxy variables even for this machine.
        for name in ("no_proxy", "NO_PROXY") if re.fullmatch(r"localhost|127\..*|::1", host) else ():
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), host]))
        answer = httpx.get(f"{url}/get_model_info", headers=headers(key), timeout=CONNECT_SECONDS)
        if "model_path" not in check_access(answer, url, key).raise_for_status().json():
            raise ValueError("its /get_model_info names no model_path")
        return MeteredEndpoint(url, chat_template, key)
    except AccessError as error:
        raise ProgramError(str(error)) from error
    except (httpx.TransportError, httpx.InvalidURL, OSError) as error:
        raise ProgramError(f"no server answers at {url} ({one_line(str(error))}); {fix}") from error
    except (httpx.HTTPError, ValueError, TypeError, RuntimeError) as error:
        reason = one_line(str(error)).split(" For more")[0]
        raise ProgramError(f"{url} answers, but not as an SGLang server ({reason}); {fix}") from error


def cost(requests: Sequence[Request], seconds: float) -> dict[str, Any]:
    """Sums over the requests of a run that took ``seconds``, as in ``programs.csv``.

    ``decode_seconds`` is the time in which at least one request was decoding, from its first token to its last;
    ``decode_tokens_per_s`` leaves the first token of a request to its prefill.
    """
    decoding, until = 0.0, float("-inf")
    for first, ended in sorted((r.first, r.ended) for r in requests if r.first is not None):
        decoding += max(0.0, ended - max(first, until))
        until = max(until, ended)
    tokens = sum(max(0, request.completion_tokens - 1) for request in requests if request.first is not None)
    return {
        "requests": len(requests),
        "prompt_tokens": sum(request.prompt_tokens for request in requests),
        "cached_tokens": sum(request.cached_tokens for request in requests),
        "generated_tokens": sum(request.completion_tokens for request in requests),
        "wall_seconds": round(seconds, 3),
        "decode_seconds": round(decoding, 3),
        "decode_tokens_per_s": tokens / decoding if decoding > 0 and tokens else None,
    }
