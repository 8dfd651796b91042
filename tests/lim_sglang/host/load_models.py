"""Loads models of SGLang, dummy weights and all, as its scheduler does, and decodes a few tokens with each.

Run with a JSON object on stdin: a name for each model's folder, SGLang's launch options for all. Every model runs in a
fork of its own. Prints a JSON object: by name what came up, and what lim reports of its plan and counters.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

import torch
from sglang.srt.plugins import load_plugins

load_plugins()

from sglang.benchmark import one_batch  # noqa: E402
from sglang.srt.server_args import ServerArgs  # noqa: E402

from lim_sglang import metrics  # noqa: E402


def run(folder: str, options: dict[str, Any]) -> dict[str, Any]:
    """One prefill and two decode steps of one request; the error, if any, and lim's report."""
    one_batch.get_tokenizer = lambda *_args, **_options: None
    given = {"load_format": "dummy", "skip_tokenizer_init": True, "device": "cpu", "max_total_tokens": 2048} | options
    work = one_batch.BenchArgs(run_name="", batch_size=(1,), input_len=(48,), output_len=(3,), result_filename="")
    error = ""
    try:
        one_batch.main(ServerArgs(model_path=folder, **given), work)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    return {"error": error, "report": metrics.report()}


def in_a_fork(folder: str, options: dict[str, Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        result = run(folder, options)
        with open(writer, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else {"error": "the process died", "report": None}


def main() -> None:
    torch.set_num_threads(1)
    asked = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        found = {name: in_a_fork(*each) for name, each in asked.items()}
    print(json.dumps(found))


main()
