"""What a user gets over HTTP from a float32 server is the algorithm, token for token, as the oracle computes it."""

import re
from collections.abc import Callable, Iterator, Sequence

import pytest
from transformers import PreTrainedTokenizerBase

from lim_sglang.tools.servers.process import ServerProcess

from .hf_oracle import SparseOracle, Turn
from .native_client import Generation, NativeClient
from .prompts import make_prompt

pytestmark = pytest.mark.e2e

NEW_TOKENS = 24
TOLERANCE = 2e-3
# Budget 256, 24 new tokens: below it for their whole life, reaching 256 and 257, crossing early, at it, far above.
BATCH_LENGTHS = (40, 150, 233, 234, 240, 256, 1100, 2100)

# Prompts are numbered. These numbers were picked so that no selection hangs on a difference below 1e-4 between two
# scores: there, either token may be in the set, and one other token in 256 moves a log-probability by up to 1e-3.
MakePrompt = Callable[[int, int], list[int]]


@pytest.fixture(scope="module")
def prompt_of(tokenizer: PreTrainedTokenizerBase) -> MakePrompt:
    """Prompt number `seed` with an exact number of tokens."""
    return lambda seed, tokens: make_prompt(tokenizer, seed, tokens)


@pytest.fixture(scope="module")
def long_prompt(prompt_of: MakePrompt) -> list[int]:
    """The prompt that most scenarios share."""
    return prompt_of(0, 2050)


@pytest.fixture
def lim(lim_server: ServerProcess) -> NativeClient:
    """The lim server, idle and with an empty radix cache."""
    client = NativeClient(lim_server.url)
    client.flush_cache()
    return client


class Comparison:
    """Compares generations with the oracle's log-probabilities and records the largest difference seen."""

    def __init__(self, oracle: SparseOracle) -> None:
        self._oracle = oracle
        self._scored: dict[object, tuple[list[list[float]], list[tuple[int, int]]]] = {}
        self.largest = 0.0

    def check(self, *turns: tuple[Sequence[int], Generation], last_token_fed: bool = False) -> None:
        """`turns`: each turn's new prompt tokens and what the server generated after them."""
        scored, near_ties = self._score([(prompt, generation.tokens) for prompt, generation in turns], last_token_fed)
        for number, ((_, generation), expected) in enumerate(zip(turns, scored, strict=True), start=1):
            self.largest = max(self.largest, largest_difference(generation.logprobs, expected))
            told = f"turn {number}; near-tied selections as (layer, cached tokens): {near_ties}"
            assert generation.logprobs == pytest.approx(expected, abs=TOLERANCE), told

    def _score(self, turns: Sequence[Turn], last_token_fed: bool) -> tuple[list[list[float]], list[tuple[int, int]]]:
        key = last_token_fed, *((tuple(prompt), tuple(tokens)) for prompt, tokens in turns)
        if key not in self._scored:
            self._scored[key] = self._oracle.score(turns, last_token_fed=last_token_fed), self._oracle.near_ties
        return self._scored[key]


def largest_difference(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def shared_comparison(oracle: SparseOracle) -> Comparison:
    return Comparison(oracle)


@pytest.fixture
def comparison(shared_comparison: Comparison, request: pytest.FixtureRequest) -> Iterator[Comparison]:
    """The module's comparison; the largest difference of the test goes into the JUnit report."""
    shared_comparison.largest = 0.0
    yield shared_comparison
    request.node.user_properties.append(("largest_logprob_difference", shared_comparison.largest))


def test_a_single_request(
    lim: NativeClient, lim_server: ServerProcess, long_prompt: list[int], comparison: Comparison, oracle: SparseOracle
) -> None:
    """Its prompt is prefilled in chunks."""
    generation = lim.generate(long_prompt, NEW_TOKENS)
    assert generation.cached_tokens == 0
    chunks = re.findall(r"Prefill batch.*#new-token: (\d+)", lim_server.log_path.read_text())
    assert [int(size) for size in chunks[-3:]] == [1024, 1024, len(long_prompt) - 2048]
    comparison.check((long_prompt, generation))
    dense = oracle.with_settings(oracle.settings.always_dense()).score([(long_prompt, generation.tokens[:16])])[0]
    assert largest_difference(generation.logprobs[:16], dense) > 20 * TOLERANCE, "the server decodes densely"


def test_eight_concurrent_requests_of_different_lengths(
    lim: NativeClient, lim_server: ServerProcess, prompt_of: MakePrompt, comparison: Comparison
) -> None:
    prompts = [prompt_of(102 + length, length) for length in BATCH_LENGTHS]
    for _ in range(3):  # on a busy machine the first may end before the last has come
        generations = lim.generate_together(prompts, NEW_TOKENS)
        if largest_batch(lim_server) == len(prompts):
            break
    assert largest_batch(lim_server) == len(prompts)
    for prompt, generation in zip(prompts, generations, strict=True):
        comparison.check((prompt, generation))


def largest_batch(server: ServerProcess) -> int:
    """The largest number of requests that the server's log reports in one decode step."""
    return max(map(int, re.findall(r"Decode batch.*#running-req: (\d+)", server.log_path.read_text())))


def test_a_prompt_asked_again_hits_the_radix_cache(
    lim: NativeClient, long_prompt: list[int], comparison: Comparison
) -> None:
    lim.generate(long_prompt, 1)
    again = lim.generate(long_prompt, NEW_TOKENS)
    assert again.cached_tokens == len(long_prompt) - 1
    comparison.check((long_prompt, again))


def test_a_shared_prefix_with_another_ending(
    lim: NativeClient, long_prompt: list[int], prompt_of: MakePrompt, comparison: Comparison
) -> None:
    lim.generate(long_prompt, NEW_TOKENS)
    other = [*long_prompt[:1500], *prompt_of(7, 200)]
    generation = lim.generate(other, NEW_TOKENS)
    assert generation.cached_tokens == 1500
    comparison.check((other, generation))


def test_a_conversation_reuses_the_cache_of_its_generated_tokens(
    lim: NativeClient, long_prompt: list[int], prompt_of: MakePrompt, comparison: Comparison
) -> None:
    question = prompt_of(11, 60)
    first = lim.generate(long_prompt, NEW_TOKENS)
    history = [*long_prompt, *first.tokens]
    second = lim.generate([*history, *question], NEW_TOKENS)
    # SGLang's overlap scheduler feeds the last generated token too; without overlap the next turn's prefill does.
    cached_reply = second.cached_tokens - len(long_prompt)
    assert cached_reply in (NEW_TOKENS - 1, NEW_TOKENS)
    comparison.check((long_prompt, first), (question, second), last_token_fed=cached_reply == NEW_TOKENS)


def test_requests_beside_and_after_one_that_its_client_left(
    lim: NativeClient, long_prompt: list[int], prompt_of: MakePrompt, comparison: Comparison
) -> None:
    assert lim.disconnect_after(prompt_of(9, 1500), max_new_tokens=6000, events=8) == 8
    # SGLang aborts two seconds after the client has left, that is, while this one runs.
    comparison.check((long_prompt, lim.generate(long_prompt, NEW_TOKENS)))
    assert lim.wait_running(0, timeout=30), "the abandoned request still runs"
    lim.flush_cache()
    comparison.check((long_prompt, lim.generate(long_prompt, NEW_TOKENS)))


@pytest.mark.parametrize("length", [1, 120, 233], ids=lambda length: f"prompt-{length}")
def test_requests_within_the_budget_equal_the_dense_backend(
    lim: NativeClient, dense_server: ServerProcess, prompt_of: MakePrompt, length: int
) -> None:
    prompt = prompt_of(200 + length, length)
    ours, theirs = (client.generate(prompt, NEW_TOKENS) for client in (lim, NativeClient(dense_server.url)))
    assert ours.tokens == theirs.tokens
    assert ours.logprobs == pytest.approx(theirs.logprobs, abs=TOLERANCE)
