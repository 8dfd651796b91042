"""The command `lim-sglang inspect`: generate with a prompt, and write the page that shows what was attended to."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lim_sglang.config import LimConfig
from lim_sglang.errors import PREFIX
from lim_sglang.layer_plan import GATED_DELTA_NETS, RULE, LayerPlan, rule_warning, select_layers_for_model
from lim_sglang.tools.analysis.texts import decoded
from lim_sglang.tools.common import (
    CommandError,
    add_config_arguments,
    check_out,
    config_of,
    integer,
    model_folder,
    own_flags,
    run,
    write_out,
)
from lim_sglang.tools.inspect.page import Setting, page_data, render_page
from lim_sglang.tools.servers.embedded_model import MODEL_NAME, ensure_model

if TYPE_CHECKING:
    from lim_sglang.tools.inspect.data import Inspection

DEFAULT_BUDGET = 256  # small enough that a prompt of one screen outgrows it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lim-sglang inspect`; numbers stay text and are judged with the configuration."""
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the prompt's text, or - to read it from stdin")
    parser.add_argument("--file", help="read the prompt from this UTF-8 text file")
    parser.add_argument("--raw", action="store_true", help="do not put the prompt into the model's chat template")
    parser.add_argument("--model", metavar="FOLDER", help="folder of a Hugging Face model (the embedded one)")
    parser.add_argument("--max-tokens", default="64", help="tokens generated at most (64)")
    add_config_arguments(parser, ("budget", "recency_ratio", "sink_tokens", "select_layers"), budget=DEFAULT_BUDGET)
    parser.add_argument("--out", type=Path, default=Path("inspect.html"), help="the page, replaced if it is there")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def run_inspect(args: argparse.Namespace) -> int:
    """Make the page; the exit code."""
    return run(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    config = config_of(args, budget=DEFAULT_BUDGET)
    max_tokens = integer("--max-tokens", args.max_tokens, 1, example=64)
    prompt = read_prompt(args)
    check_out(args.out)
    folder = ensure_model() if args.model is None else model_folder("--model", args.model)
    name = MODEL_NAME if args.model is None else folder.resolve().name
    inspection, texts, setting = _inspect(folder, name, prompt, config, max_tokens, raw=args.raw)
    page = render_page(page_data(inspection, texts, setting))
    write_out(args.out, page)
    counts = f"{len(inspection.prompt_ids)} prompt and {len(inspection.output_ids)} generated tokens"
    print(f"{args.out}: {counts}, {len(inspection.events)} select events")
    if args.open and not webbrowser.open(args.out.resolve().as_uri()):
        print(f"{PREFIX}: no browser could be opened; open {args.out} in one", file=sys.stderr)


# Arguments


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt of PROMPT, `--file` or stdin.

    Raises:
        CommandError: none or both are given, or the text is empty.
        TextError: it is unreadable or not UTF-8.
    """
    if (args.prompt is None) == (args.file is None):
        given = "neither PROMPT nor --file is" if args.prompt is None else "PROMPT and --file are both"
        raise CommandError(
            f"{given} given: expected one of them; for example lim-sglang inspect 'Why is the sky blue?'"
        )
    if args.file is not None:
        source, text = f"--file {args.file}", decoded(f"--file {args.file}", Path(args.file).read_bytes)
    elif args.prompt == "-":
        source, text = "stdin", decoded("stdin", sys.stdin.buffer.read)
    else:
        source, text = "PROMPT", decoded("PROMPT", lambda: os.fsencode(args.prompt))
    if not text.strip():
        raise CommandError(f"{source}: the prompt is empty; give at least one word")
    return text


# The generation


def _inspect(
    folder: Path, name: str, prompt: str, config: LimConfig, max_tokens: int, *, raw: bool
) -> tuple[Inspection, list[str], Setting]:
    """Load the model, generate, and tell the tokens' texts."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    from lim_sglang.tools.analysis.model import PolicyModel
    from lim_sglang.tools.analysis.policies import LessIsMore
    from lim_sglang.tools.inspect.data import inspect_generation, token_texts

    logging.disable_progress_bar()
    with Console(stderr=True).status(f"reading {name} ...") as status:
        with _reading(folder):
            model_config = _text_config(AutoConfig.from_pretrained(folder, local_files_only=True))
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        _check_attention(folder, model_config)
        setting = _setting(folder, name, model_config, config)
        ids = _prompt_ids(tokenizer, prompt, raw=raw)
        context = model_config.max_position_embeddings
        if len(ids) + max_tokens > context:
            raise CommandError(
                f"prompt of {len(ids)} tokens and --max-tokens {max_tokens}: expected at most {context} together, the "
                "model's context; shorten the prompt or lower --max-tokens"
            )
        with _reading(folder):
            model = PolicyModel.load(folder)
        status.update(f"prefill of {len(ids)} tokens ...")
        inspection = inspect_generation(
            model,
            ids,
            LessIsMore(setting.plan, config.parts),
            max_tokens,
            _stop_ids(model.model, tokenizer),
            lambda count: status.update(f"generated {count} of {max_tokens} tokens ..."),
        )
    if setting.source == RULE:
        print(f"{PREFIX}: {own_flags(rule_warning(name, setting.plan.select_layers))}", file=sys.stderr)
    return inspection, token_texts(tokenizer, inspection.prompt_ids + inspection.output_ids), setting


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Whatever a library says about unusable files, as one line that names the folder."""
    try:
        yield
    except Exception as error:
        raise CommandError(f"--model {folder} cannot be read: {type(error).__name__}: {error}") from error


def _text_config(model: Any) -> Any:
    """An image-text model's configuration of its text model, under the whole model's class name."""
    text = model.get_text_config()
    text.architectures = model.architectures
    return text


def _check_attention(folder: Path, model: Any) -> None:
    """Refuse models with other layers than attention by head and gated delta nets, and those without full attention."""
    from lim_sglang.tools.analysis.model import attending_layers

    kinds = set(getattr(model, "layer_types", None) or ["full_attention"])
    has_heads = all(hasattr(model, key) for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"))
    beyond = bool(getattr(model, "attn_logit_softcapping", None))
    if model.model_type in GATED_DELTA_NETS:
        kinds.discard("linear_attention")
    known = kinds <= {"full_attention", "sliding_attention"}
    if not has_heads or beyond or not kinds or not known or not attending_layers(model):
        raise CommandError(
            f"--model {folder} ({model.model_type}) has layers that are not full attention over keys and values by "
            "head, and a token set is defined for no others; name a model such as Llama or Qwen3"
        )


def _setting(folder: Path, name: str, model: Any, config: LimConfig) -> Setting:
    """Resolve the select layers against a Hugging Face model config."""
    from lim_sglang.tools.analysis.model import attending_layers

    attending = attending_layers(model)
    layers, source = config.select_layers, "given"
    if layers == "auto":
        architecture = (model.architectures or [""])[0]
        shape = model.num_hidden_layers, architecture, model.hidden_size, model.num_key_value_heads
        layers, source = select_layers_for_model(*shape, str(folder), attending)
    plan = LayerPlan.from_select_layers(model.num_hidden_layers, layers, attending)
    return Setting(name, model.num_attention_heads, config, plan, source)


def _prompt_ids(tokenizer: Any, prompt: str, *, raw: bool) -> list[int]:
    if raw or tokenizer.chat_template is None:
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def _stop_ids(model: Any, tokenizer: Any) -> set[int]:
    named = model.generation_config.eos_token_id
    ids = named if isinstance(named, list) else [named]
    return {number for number in (*ids, tokenizer.eos_token_id) if number is not None}
