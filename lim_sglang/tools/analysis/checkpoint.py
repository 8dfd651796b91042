"""The weights of a Hugging Face folder, one tensor at a time, under the names that transformers' classes give them.

Published mixtures of experts hold every expert's matrices by themselves where the classes hold them stacked, and FP8
checkpoints hold a matrix and its scales. Both are put together on the device, one matrix after the other, so that
nothing but the result is held.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SCALES = ("_scale_inv", "_scale")  # behind the weight's name; both are factors of it, whatever the name says
QUANTIZED = "quant_method fp8, or compressed-tensors in format float-quantized"


class StreamingError(RuntimeError):
    """A folder that cannot be streamed; the message is one line with the fix."""


@dataclass(frozen=True)
class Naming:
    """How published checkpoints of a type name what transformers' classes call otherwise.

    Attributes:
        mlp: the classes' ``mlp``.
        gate, up, down: the matrices of one expert; the classes stack them as ``experts.gate_up_proj``, the gate above
            the up projection, and ``experts.down_proj``.
    """

    mlp: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"

    def published(self, name: str, shape: Sequence[int]) -> list[str]:
        """The tensors that make up the classes' ``name`` of ``shape``, one below the other."""
        name = name.replace(".mlp.", f".{self.mlp}.")
        block, _, stacked = name.rpartition(".experts.")
        parts = {"gate_up_proj": (self.gate, self.up), "down_proj": (self.down,)}.get(stacked)
        if parts is None:
            return [name]
        return [f"{block}.experts.{expert}.{part}.weight" for expert in range(shape[0]) for part in parts]


class Checkpoint:
    """See the module. Files stay open from the first read until ``close``."""

    def __init__(self, folder: Path, naming: Naming, quantization: dict[str, Any] | None) -> None:
        """Find the tensors' files; ``quantization`` is config.json's ``quantization_config``.

        Raises:
            StreamingError: no safetensors files, or weights that are quantized in a way that is not known.
        """
        self._folder, self._naming = folder, naming
        self._block = scale_block(folder, quantization)
        self._open: dict[str, Any] = {}
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        if index.is_file():
            with readable(index):
                self._file_of = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        elif single.is_file():
            with readable(single):
                self._file_of = dict.fromkeys(self._file(single.name).keys(), single.name)
        else:
            raise StreamingError(f"{folder} holds neither {single.name} nor {index.name}: expected safetensors weights")

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def close(self) -> None:
        """Let go of the files; a later read opens them again."""
        self._open.clear()

    def dtype(self, name: str) -> torch.dtype:
        """That of a tensor as stored."""
        return self._stored(name).dtype

    def load(self, name: str, shape: torch.Size, device: torch.device, dtype: torch.dtype | None) -> Tensor:
        """The classes' tensor ``name`` on ``device``, in ``dtype`` or as stored.

        Raises:
            StreamingError: a tensor that makes it up is missing or has another shape, or a file cannot be read.
        """
        names = [name] if name in self else self._naming.published(name, shape)
        if len(names) == 1:
            return self._plain(names[0], shape, device).to(dtype=dtype)
        whole = torch.empty(shape, device=device, dtype=dtype)
        for part, of_part in zip(whole.view(len(names), -1, shape[-1]), names, strict=True):
            part.copy_(self._plain(of_part, part.shape, device))
        return whole

    def _plain(self, name: str, shape: torch.Size, device: torch.device) -> Tensor:
        """One stored tensor on ``device``: FP8 times its scales, as float32; others as they are."""
        tensor = self._stored(name)
        self._check_shape(name, tensor, shape)
        if tensor.dtype.itemsize > 1:
            return tensor.to(device)
        of_scale = next((name + scale for scale in SCALES if name + scale in self), name + SCALES[0])
        scale = self._stored(of_scale)
        if scale.numel() > 1:
            self._check_shape(of_scale, scale, scale_shape(shape, self._block or (1, shape[-1])))
        return dequantized(tensor.to(device), scale.to(device), self._block)

    def _check_shape(self, name: str, tensor: Tensor, shape: torch.Size) -> None:
        if tensor.shape != shape:
            raise StreamingError(
                f"{name} of shape {list(tensor.shape)} in {self._folder}: expected {list(shape)}, as its config.json "
                "says; fetch the folder again"
            )

    def _stored(self, name: str) -> Tensor:
        """One tensor as it is stored, on the CPU."""
        if name not in self:
            raise StreamingError(f"{self._folder} lacks the tensor {name}; fetch the weights again")
        with readable(self._folder / self._file_of[name]):
            tensor: Tensor = self._file(self._file_of[name]).get_tensor(name)
        return tensor

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self._folder / name, framework="pt")
        return self._open[name]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file, as a ``StreamingError`` that names it."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise StreamingError(f"{path} cannot be read: {type(error).__name__}: {error}; fetch it again") from error


def scale_block(folder: Path, quantization: dict[str, Any] | None) -> tuple[int, int] | None:
    """Rows and columns that share a scale, as config.json's ``quantization_config`` says.

    None for one scale per row or per matrix, and for plain weights.

    Raises:
        StreamingError: weights that are quantized in a way that is not known.
    """
    given = quantization or {}
    method, packing = given.get("quant_method"), given.get("format")
    if given and method != "fp8" and (method, packing) != ("compressed-tensors", "float-quantized"):
        raise StreamingError(
            f"{folder} holds weights quantized by quant_method={method!r}, format={packing!r}: expected plain ones, or "
            f"{QUANTIZED}; use another checkpoint of the model"
        )
    block = given.get("weight_block_size")
    return None if block is None else (block[0], block[1])


def scale_shape(shape: Sequence[int], block: tuple[int, int]) -> torch.Size:
    """That of the scales of [..., N, K] weights; the last blocks may be cut off."""
    return torch.Size((*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1])))


def dequantized(weight: Tensor, scale: Tensor, block: tuple[int, int] | None) -> Tensor:
    """[..., N, K] FP8 to float32, with one scale for all, one per ``block``, or one per row where that is None."""
    factor = scale.float()
    if block is not None and scale.numel() > 1:
        for dim, step in zip((-2, -1), block, strict=True):
            factor = factor.repeat_interleave(step, dim).narrow(dim, 0, weight.shape[dim])
    return weight.float().mul_(factor)
