"""SGLang's native HTTP interface: token ids in, token ids and their log-probabilities out."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import httpx

from lim_sglang.tools.servers.events import read_events

REQUEST_TIMEOUT = 300.0


@dataclass(frozen=True)
class Generation:
    """One finished greedy request; `logprobs[i]` is the server's log-probability of `tokens[i]`."""

    tokens: list[int]
    logprobs: list[float]
    cached_tokens: int


class NativeClient:
    """A client of one server; every request is greedy and runs for exactly the number of tokens asked for."""

    def __init__(self, url: str) -> None:
        self.url = url

    def generate(self, prompt: Sequence[int], max_new_tokens: int, dp_rank: int | None = None) -> Generation:
        """`dp_rank`: which of `--dp-size` is to serve it; None leaves that to the server."""
        rank = {} if dp_rank is None else {"routed_dp_rank": dp_rank}
        answer = self.post(prompt, {"max_new_tokens": max_new_tokens}, return_logprob=True, **rank)
        meta = answer["meta_info"]
        pairs = [(token, logprob) for logprob, token, *_ in meta["output_token_logprobs"]]
        tokens, logprobs = map(list, zip(*pairs, strict=True))
        assert answer["output_ids"] == tokens
        assert len(tokens) == max_new_tokens
        return Generation(tokens, logprobs, meta["cached_tokens"])

    def post(self, prompt: Sequence[int], sampling: dict[str, Any], **more: Any) -> Any:
        """The server's answer to a request that is greedy and goes on, if ``sampling`` does not say otherwise."""
        response = httpx.post(f"{self.url}/generate", json=_body(prompt, sampling) | more, timeout=REQUEST_TIMEOUT)
        assert response.status_code == 200, response.text
        return response.json()

    def generate_together(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, dp_ranks: Sequence[int] | None = None
    ) -> list[Generation]:
        """All prompts at once, each a request of its own; `dp_ranks`: who is to serve each."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            sizes = [max_new_tokens] * len(prompts)
            return list(pool.map(self.generate, prompts, sizes, dp_ranks or [None] * len(prompts)))

    def disconnect_after(self, prompt: Sequence[int], max_new_tokens: int, events: int) -> int:
        """Stream a request and close the connection after `events` events; the number of events read."""
        body = _body(prompt, {"max_new_tokens": max_new_tokens}) | {"return_logprob": True, "stream": True}
        with httpx.stream("POST", f"{self.url}/generate", json=body, timeout=REQUEST_TIMEOUT) as response:
            assert response.status_code == 200
            return len(list(islice(read_events(response.iter_bytes()), events)))

    def running_requests(self) -> int:
        return self._load("num_running_reqs")

    def used_tokens(self) -> int:
        """Slots of the KV pool that are taken, without those that the radix cache may give up."""
        return self._load("num_used_tokens")

    def _load(self, name: str) -> int:
        """The sum over all ranks."""
        response = httpx.get(f"{self.url}/v1/loads", timeout=REQUEST_TIMEOUT)
        assert response.status_code == 200, response.text
        return sum(load[name] for load in response.json()["loads"])

    def wait_running(self, count: int, timeout: float) -> bool:
        """Whether the number of running requests became `count` within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.running_requests() != count:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.25)
        return True

    def flush_cache(self) -> None:
        """Empty the radix cache; the server refuses while a request runs."""
        response = httpx.post(f"{self.url}/flush_cache", params={"timeout": 30}, timeout=REQUEST_TIMEOUT)
        assert response.status_code == 200, response.text


def _body(prompt: Sequence[int], sampling: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": list(prompt), "sampling_params": {"temperature": 0, "ignore_eos": True} | sampling}
