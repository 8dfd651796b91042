"""Real servers for the end-to-end tests, each started once per session, on the bundled small model in float32."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bench.plugins import add_metadata
from lim_sglang.tools.servers.embedded_model import ensure_model
from lim_sglang.tools.servers.ports import free_port
from lim_sglang.tools.servers.process import ServerProcess

from . import fork_processes, record_sets
from .forked_server import ForkedServer
from .hf_oracle import OracleSettings, SparseOracle
from .short_model import short_model

# Their assertions tell both sides, as those of tests do; none of them is imported above.
pytest.register_assert_rewrite(*(f"{__package__}.{name}" for name in ("http_checks", "native_client", "ranks")))

SETTINGS = OracleSettings(budget=256, recency_ratio=0.25, sink_tokens=4, select_layers=(2, 6))
LIM_CONFIG = {
    "budget": SETTINGS.budget,
    "recency_ratio": SETTINGS.recency_ratio,
    "sink_tokens": SETTINGS.sink_tokens,
    "select_layers": list(SETTINGS.select_layers),
}
# Threads that wait for each other crawl as soon as one of them shares its core with something else.
THREADS = max(1, (os.cpu_count() or 1) // 2)
# A small KV pool, so that several servers fit into memory; an idle server that leaves the cores to the oracle; a log
# line per decode step, which tells the batch size; no spaces without end where a schema would allow them.
COMMON_ARGS = ["--dtype", "float32", "--max-total-tokens", "16384", "--sleep-on-idle", "--decode-log-interval", "1"]
COMMON_ARGS += ["--constrained-json-disable-any-whitespace"]
# How lim_server prefills what is longer.
CHUNKS = ["--chunked-prefill-size", "1024"]


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The servers that commands start fork their processes, too."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in load_plugins(tmp_path_factory.mktemp("forked"), fork_processes).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def model_path() -> Path:
    return short_model(Path(ensure_model()))


@pytest.fixture(scope="session")
def tokenizer(model_path: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path)


@pytest.fixture(scope="session")
def oracle(model_path: Path) -> SparseOracle:
    torch.set_num_threads(THREADS)
    return SparseOracle.load(str(model_path), SETTINGS)


def start_server(
    model_path: Path,
    log_path: Path,
    *args: str,
    env: dict[str, str] | None = None,
    plugins: Sequence[ModuleType] = (),
) -> ServerProcess:
    """A server that has been started and may not be ready yet; the log has its folder to itself.

    ``plugins``: modules of the tests that SGLang loads as plugins. Servers whose processes are spawned, as a user's
    are, start in test_readme.py, test_faults.py and test_user_errors.py.
    """
    loading = load_plugins(log_path.parent, fork_processes, *plugins)
    environment = {"OMP_NUM_THREADS": str(THREADS)} | loading | (env or {})
    # SGLang 0.5.16's own choice is an ephemeral port, which may be another socket's when it is bound. Ranks of data
    # parallelism need one each.
    own_port = [] if "--dp-size" in args else ["--nccl-port", str(free_port())]
    options = [*COMMON_ARGS, *own_port, *args]
    server = ForkedServer(str(model_path), options, env=environment, log_path=log_path)
    server.start()
    return server


def load_plugins(folder: Path, *modules: ModuleType) -> dict[str, str]:
    """Write what makes SGLang load these modules as plugins; the environment of a server that does."""
    for module in modules:
        add_metadata(folder, f"lim-test-{module.__name__.split('.')[-1].replace('_', '-')}", module.__name__)
    path = [str(folder), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path)}


def running(server: ServerProcess) -> Iterator[ServerProcess]:
    """The body of a server fixture: ready for the tests, stopped after them."""
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop(grace=0)  # how a server ends is what test_faults.py sees


def start_lim(
    model_path: Path,
    log_path: Path,
    *args: str,
    env: dict[str, str] | None = None,
    plugins: Sequence[ModuleType] = (),
) -> ServerProcess:
    env = {"SGLANG_LIM_CONFIG": json.dumps(LIM_CONFIG)} | (env or {})
    return start_server(model_path, log_path, "--attention-backend", "lim", *args, env=env, plugins=plugins)


@pytest.fixture(scope="session")
def lim_server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """`--attention-backend lim`; prompts of more than 1,024 tokens are prefilled in chunks, token sets written down."""
    folder = tmp_path_factory.mktemp("lim")
    env = {record_sets.FOLDER: str(folder)}
    yield from running(start_lim(model_path, folder / "server.log", *CHUNKS, env=env, plugins=[record_sets]))


@pytest.fixture(scope="session")
def dense_server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """SGLang's own dense CPU backend.

    One step after the other, like the lossless mode: with overlap scheduling SGLang penalises a token one step late.
    """
    log_path = tmp_path_factory.mktemp("dense") / "server.log"
    options = ["--attention-backend", "torch_native", "--disable-overlap-schedule"]
    yield from running(start_server(model_path, log_path, *options))
