"""A mistake at launch costs one line: what, which value, what is allowed; no stack trace, nothing left running."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.e2e

LINE_START = "lim-sglang: error:"
LAUNCH_TIMEOUT = 300.0
EXIT_TIMEOUT = 10.0

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
MLA = LLAMA | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 6,
}


@dataclass(frozen=True)
class Launch:
    """How a launch ended."""

    exit_code: int
    stdout: str
    stderr: str
    left_behind: list[str]

    def error_line(self) -> str:
        """The one error line; everything that must not be there is checked here."""
        lines = [line for line in self.stderr.splitlines() if line.startswith(LINE_START)]
        assert len(lines) == 1, self.stderr[-4000:]
        assert "Traceback" not in self.stdout + self.stderr
        assert "Load weight begin" not in self.stdout + self.stderr
        assert self.exit_code > 0
        assert self.left_behind == []
        return lines[0]


def write_model(folder: Path, config: dict[str, object]) -> Path:
    """A model folder that is all config; weights would be random."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def launch(model: Path, *args: str, lim_config: str | None = None) -> Launch:
    """Start a lim server in a session of its own and wait for its end; the session is empty afterwards."""
    dummy = ["--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "float32"]
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), *dummy, *args]
    environment = {key: value for key, value in os.environ.items() if key != "SGLANG_LIM_CONFIG"}
    if lim_config is not None:
        environment["SGLANG_LIM_CONFIG"] = lim_config
    stdout, stderr = model / "stdout.txt", model / "stderr.txt"
    with stdout.open("w") as out, stderr.open("w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, start_new_session=True)
        try:
            exit_code = process.wait(LAUNCH_TIMEOUT)
            left_behind = wait_until_empty(process.pid)
        finally:
            kill_session(process)
    return Launch(exit_code, stdout.read_text(), stderr.read_text(), left_behind)


def session_processes(session: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def wait_until_empty(session: int) -> list[str]:
    """The names of the processes that are still in the session after `EXIT_TIMEOUT` seconds."""
    deadline = time.monotonic() + EXIT_TIMEOUT
    while (names := [process.name() for process in session_processes(session)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return names


def kill_session(process: subprocess.Popen[bytes]) -> None:
    for member in session_processes(process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL)
    process.wait(EXIT_TIMEOUT)


def test_a_configuration_that_cannot_work(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", LLAMA)
    line = launch(model, "--attention-backend", "lim", lim_config='{"select_layers": [2, 99]}').error_line()
    assert [words for words in ("select_layers", "99", "0 to 5") if words not in line] == [], line


def test_a_model_that_is_refused(tmp_path: Path) -> None:
    line = launch(write_model(tmp_path / "model", MLA), "--attention-backend", "lim").error_line()
    assert "DeepseekV2ForCausalLM" in line
    assert "latent" in line


def test_a_model_whose_loaded_layers_are_refused(tmp_path: Path) -> None:
    """Nothing but the layers tells that Transformers' classes apply the window, and they come with the weights."""
    windowed = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "head_dim": None}
    window = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}
    model = write_model(tmp_path / "model", LLAMA | windowed | window)
    ended = launch(model, "--attention-backend", "lim", "--model-impl", "transformers", "--max-total-tokens", "4096")
    output = (ended.stdout + ended.stderr).splitlines()
    lines = [line for line in output if line.startswith(LINE_START)]
    assert len(lines) == 1, ended.stderr[-4000:]
    assert "the model (Qwen2ForCausalLM), as loaded, does not work with lim: a sliding window of 65 tokens" in lines[0]
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ended.exit_code != 0
    assert ended.left_behind == []


def test_a_port_in_use(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", LLAMA)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = launch(model, "--attention-backend", "lim", "--port", port).error_line()
    assert port in line
    assert "in use" in line


PAGE = Path(__file__).parents[2] / "lim_sglang" / "docs" / "troubleshooting.md"


def test_sglangs_benchmark_started_as_the_page_says(tmp_path: Path) -> None:
    """As far as our judgement of a flag of ours, which comes after parsing and before any model is loaded."""
    [block] = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    program, *words = shlex.split(block.replace("\\\n", " "))
    assert (program, words[0]) == ("python", "-c")
    words[words.index("FOLDER")] = str(write_model(tmp_path / "model", LLAMA))
    command = [sys.executable, *words, "--lim-budget", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LAUNCH_TIMEOUT, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"{LINE_START} --lim-budget: budget=0 is not allowed")
