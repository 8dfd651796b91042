"""Loads a model of SGLang, dummy weights and all, as its scheduler does, and decodes a few tokens with it.

Argument: the model's folder. Prints a JSON object: what lim reports of its plan and counters.
"""

from __future__ import annotations

import contextlib
import json
import sys

import torch
from sglang.srt.plugins import load_plugins

load_plugins()

from sglang.benchmark import one_batch  # noqa: E402
from sglang.srt.server_args import ServerArgs  # noqa: E402

from lim_sglang import metrics  # noqa: E402

torch.set_num_threads(1)
one_batch.get_tokenizer = lambda *_args, **_options: None
given = {"attention_backend": "lim", "load_format": "dummy", "skip_tokenizer_init": True, "device": "cpu"}
work = one_batch.BenchArgs(run_name="", batch_size=(1,), input_len=(48,), output_len=(3,), result_filename="")
with contextlib.redirect_stdout(sys.stderr):
    one_batch.main(ServerArgs(model_path=sys.argv[1], max_total_tokens=2048, **given), work)
print(json.dumps(metrics.report()))
