"""The Triton kernels compile for Hopper, also on a machine that cannot run them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

COMPILE = """
import json, sys
import triton
from lim_kernels.select import full_ranking, kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

name, constants, pointers, warps = json.loads(sys.argv[1])
function = getattr(full_ranking if name.startswith('full') else kernel, name)
signature = {a: "constexpr" if a in constants else pointers.get(a, "i32") for a in function.arg_names}
constexprs = {(function.arg_names.index(a),): value for a, value in constants.items()}
source = ASTSource(fn=function, signature=signature, constexprs=constexprs)
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
print(len(compiled.asm["cubin"]), compiled.metadata.shared)
"""
POINTERS = {
    "q": "*bf16",
    "k_cache": "*bf16",
    **dict.fromkeys(["ranked", "scratch"], "*i64"),
    **dict.fromkeys(["kv_indptr", "kv_indices", "scores", "keys", "sparse_indptr", "sparse_indices"], "*i32"),
    **dict.fromkeys(["shortlists", "counts", "unfinished"], "*i32"),
}
SCORE = {"GROUP_PAD": 16, "HEAD_DIM": 128, "HEAD_DIM_PAD": 128, "BLOCK_N": 128, "UPCAST": False}
KERNELS = {
    "sparse_indptr": ("sparse_indptr_kernel", {"BLOCK": 64}, {}, 4),
    "score": ("score_kernel", SCORE, {}, 4),
    "score fp8": ("score_kernel", SCORE, {"k_cache": "*fp8e4nv"}, 4),
    "shortlist": ("shortlist_kernel", {"MOST": 1024, "BLOCK": 8192}, {}, 16),
    "emit": ("emit_kernel", {"SELECTS": True, "MOST": 1024, "HEADS": 32, "BLOCK": 4096}, {}, 16),
    "full rank": ("full_rank_kernel", {"SELECTED_PAD": 2048, "BLOCK": 4096}, {}, 16),
    "full emit": ("full_emit_kernel", {"KEY_PASSES": 2, "BLOCK": 4096}, {}, 16),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_compiles_for_hopper(kernel: tuple[str, dict[str, object], dict[str, str], int]) -> None:
    name, constants, pointers, warps = kernel
    request = json.dumps([name, constants, POINTERS | pointers, warps])
    done = subprocess.run([sys.executable, "-c", COMPILE, request], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    size, shared = map(int, done.stdout.split()[-2:])
    assert size > 0
    assert shared <= 227 << 10
