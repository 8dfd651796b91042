"""`lim-sglang demo`: one reasoning conversation on SGLang with `lim`, then the same tokens judged by dense attention.

Two servers run one after the other. The first, with `--attention-backend lim`, holds a conversation of several turns
over a long shared prefix. The second, dense, is given the very same tokens and says at how many positions it would
have chosen the same one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from lim_sglang.config import KEYS
from lim_sglang.errors import PREFIX, one_line
from lim_sglang.tools.common import CommandError, model_folder, positive
from lim_sglang.tools.demo.chat import WORKED_CASES, Chat, question
from lim_sglang.tools.demo.report import Turn, count_agreement, drafts_line, role_rows, role_table, turn_table
from lim_sglang.tools.servers.access import headers, key_of
from lim_sglang.tools.servers.embedded_model import ensure_model
from lim_sglang.tools.servers.local import DENSE, LIM, LOSSLESS, Size, find_device, ready, server_arguments
from lim_sglang.tools.servers.process import ServerProcess
from lim_sglang.tools.servers.state import counted_since, lim_state, rounds_since

_REQUEST_TIMEOUT = 1800.0
_SIZE = Size(tokens=10240, requests=4)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `lim-sglang demo`."""
    parser.add_argument("--budget", type=positive, default=512, help=f"{KEYS['budget'].help} (512)")
    parser.add_argument("--lossless", action="store_true", help="lim drafts, and dense attention verifies every token")
    parser.add_argument("--turns", type=positive, default=4, help="questions asked (4)")
    parser.add_argument("--max-tokens", type=positive, default=160, help="longest answer, in tokens (160)")
    parser.add_argument("--model-path", help="another model, as a local folder (the embedded one)")
    parser.add_argument(
        "--server-arg",
        action="append",
        default=[],
        metavar="'--OPTION VALUE'",
        help="one more SGLang option for both servers, in quotes; may be repeated (--lim-* goes to lim only)",
    )
    parser.add_argument("--quiet", action="store_true", help="print the tables only")


def run_demo(args: argparse.Namespace) -> int:
    """Run the demo; 0, 1 after one line on stderr, or 130 after Ctrl-C. No process is left in any case."""
    logs = Path(tempfile.mkdtemp(prefix="lim-sglang-demo-"))
    try:
        _run(args, logs)
        code, message = 0, ""
    except KeyboardInterrupt:
        code, message = 130, "interrupted; nothing is left running"
    except Exception as error:
        named = str(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"
        code, message = 1, f"error: {named}" if str(logs) in named else f"error: {named} (server logs: {logs})"
    if message:
        print(f"{PREFIX}: {one_line(message)}", file=sys.stderr, flush=True)
    if code != 1:
        shutil.rmtree(logs, ignore_errors=True)
    return code


def _run(args: argparse.Namespace, logs: Path) -> None:
    import openai

    out = Console(highlight=False)
    talk = Console(highlight=False, quiet=args.quiet)
    device = find_device()
    if device.note:
        out.print(device.note, soft_wrap=True)
    given = args.model_path
    model = ensure_model(quiet=args.quiet) if given is None else model_folder("--model-path", given)
    chat = Chat.load(model)
    limit = json.loads((model / "config.json").read_text()).get("max_position_embeddings", _SIZE.tokens)
    chat.check_fits(args.turns, args.max_tokens, min(limit, _SIZE.tokens))
    names = (LOSSLESS if args.lossless else LIM, DENSE)
    lim_args, dense_args = (server_arguments(device, name, _SIZE, args.server_arg) for name in names)

    lost = (openai.APIError, httpx.HTTPError)
    config = {"SGLANG_LIM_CONFIG": json.dumps({"budget": args.budget, "select_layers": "auto"})}
    lim = ServerProcess(model, lim_args, env=device.env | config, log_path=logs / "lim.log")
    with ready(lim, "Starting SGLang with lim attention", talk, lost):
        key = _key(lim)
        before = lim_state(lim.url, _REQUEST_TIMEOUT, key)
        turns = _converse(lim.url, key, chat, args, talk)
        after = lim_state(lim.url, _REQUEST_TIMEOUT, key)
    dense = ServerProcess(model, dense_args, env=device.env, log_path=logs / "dense.log")
    with ready(dense, "Starting SGLang with dense attention, to judge the same tokens", talk, lost):
        agreed = [_agreement_of(dense.url, _key(dense), turn, number, talk) for number, turn in enumerate(turns, 1)]

    out.print("\nThe conversation, served with lim")
    out.print(turn_table(turns, agreed))
    if not all(turn.exact for turn in turns):
        out.print("~ the server's token ids could not be told from its text; the text was tokenized again")
    layers = ", ".join(str(layer) for layer in after["plan"]["select_layers"])
    if args.lossless:
        out.print(f"\n{drafts_line(rounds_since(before, after))}")
    reader = "the drafts' attention" if args.lossless else "decode attention"
    out.print(f"\nTokens read by {reader}: budget {after['config']['budget']}, select layers {layers}")
    out.print(role_table(role_rows(after["plan"], counted_since(before, after))))


def _key(server: ServerProcess) -> str | None:
    """What the server was started with; the environment's key for one that has its own from a file."""
    return server.key or key_of()


# The conversation


def _converse(url: str, key: str | None, chat: Chat, args: argparse.Namespace, talk: Console) -> list[Turn]:
    """Ask every question in one growing conversation and stream the answers."""
    import openai

    http = httpx.Client(timeout=_REQUEST_TIMEOUT, trust_env=False)
    messages = chat.opening()
    prefix = len(chat.render(messages, answer=False))
    talk.print(f"\nShared prefix: {prefix} tokens in {WORKED_CASES} worked cases. Sparse budget: {args.budget} tokens.")
    turns = []
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key or "none", max_retries=0, http_client=http) as client:
        for number in range(args.turns):
            messages.append({"role": "user", "content": question(number)})
            talk.print(f"\n[bold]{number + 1}/{args.turns}[/bold] {question(number)}", style="cyan", soft_wrap=True)
            turns.append(_ask(client, chat, messages, args.max_tokens, talk))
            messages.append({"role": "assistant", "content": turns[-1].text})
    return turns


def _ask(client: Any, chat: Chat, messages: list[dict[str, str]], max_tokens: int, talk: Console) -> Turn:
    """Stream one answer to the terminal."""
    prompt_ids = chat.render(messages)
    with talk.status("reading the prompt ...") as status:
        stream = client.chat.completions.create(
            model="default",
            messages=messages,
            temperature=0,
            max_tokens=max_tokens,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
        )
        answer = _read_stream(stream, status.stop, talk)
    usage = answer.usage
    if usage is None or usage.prompt_tokens != len(prompt_ids):
        counted = "no" if usage is None else usage.prompt_tokens
        raise CommandError(f"the server counts {counted} prompt tokens, the chat template gives {len(prompt_ids)}")
    output_ids, exact = chat.output_ids(answer.pieces, answer.text, answer.stop_id, usage.completion_tokens)
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details else 0
    return Turn(prompt_ids, output_ids, cached, answer.decode_seconds, answer.text, exact)


@dataclass
class _Answer:
    text: str = ""
    pieces: list[str] = field(default_factory=list)
    stop_id: int | None = None
    usage: Any = None
    decode_seconds: float = 0.0


def _read_stream(stream: Any, on_first: Callable[[], None], talk: Console) -> _Answer:
    """Collect a streamed chat completion and print its text as it comes."""
    answer, first = _Answer(), 0.0
    try:
        for chunk in stream:
            answer.usage = chunk.usage or answer.usage
            for choice in chunk.choices:
                if choice.logprobs and choice.logprobs.content:
                    answer.pieces += [item.token for item in choice.logprobs.content]
                    first = first or time.monotonic()
                    answer.decode_seconds = time.monotonic() - first
                if isinstance(stopped_by := getattr(choice, "matched_stop", None), int):
                    answer.stop_id = stopped_by
                if choice.delta.content:
                    answer.text += choice.delta.content
                    on_first()
                    talk.print(choice.delta.content, end="", markup=False, soft_wrap=True)
    finally:
        talk.print()
    return answer


# The judgement


def _agreement_of(url: str, key: str | None, turn: Turn, number: int, talk: Console) -> int:
    """At how many generated positions the dense server's most probable token is the one that was generated."""
    body = {
        "input_ids": turn.prompt_ids + turn.output_ids,
        "sampling_params": {"temperature": 0, "max_new_tokens": 1},
        "return_logprob": True,
        "logprob_start_len": len(turn.prompt_ids) - 1,
        "top_logprobs_num": 1,
    }
    with talk.status(f"judging turn {number} ..."):
        response = httpx.post(
            f"{url}/generate", json=body, headers=headers(key), timeout=_REQUEST_TIMEOUT, trust_env=False
        )
        response.raise_for_status()
    return count_agreement(response.json(), turn.output_ids)
