"""The Triton kernels compile for Hopper, also on a machine that cannot run them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

COMPILE = """
import json, sys
import triton
from importlib import import_module
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

path, constants, types, warps = json.loads(sys.argv[1])
module, name = path.split(":")
function = getattr(import_module("lim_kernels." + module), name)
if "CHAINED" in function.arg_names:
    constants["CHAINED"] = True
signature = {a: "constexpr" if a in constants else types.get(a, "i32") for a in function.arg_names}
constexprs = {(function.arg_names.index(a),): value for a, value in constants.items()}
source = ASTSource(fn=function, signature=signature, constexprs=constexprs)
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
print(len(compiled.asm["cubin"]), compiled.metadata.shared)
"""
TYPES = {
    **dict.fromkeys(["q", "k_cache", "v_cache", "out"], "*bf16"),
    **dict.fromkeys(["partial", "partial_lse"], "*fp32"),
    **dict.fromkeys(["logits_scale", "soft_cap", "value_scale"], "fp32"),
    "ranked": "*i64",
    **dict.fromkeys(["kv_indptr", "kv_indices", "scores", "maxima", "keys", "sparse_indptr", "sparse_indices"], "*i32"),
    **dict.fromkeys(["shortlists", "counts", "spans", "best", "unfinished"], "*i32"),
}
FP8 = dict.fromkeys(["k_cache", "v_cache"], "*fp8e4nv")
HEAD = {"HEAD_DIM": 128, "HEAD_DIM_PAD": 128, "BLOCK_N": 64}
ATTEND = HEAD | {"GROUP_PAD": 16, "STAGES": 3, "CAPPED": False, "UPCAST": False, "SELECTS": True, "SPAN": 16}
SHORTLIST = {"MOST": 1024, "SPAN": 16, "BLOCK": 1024, "RANK_BLOCK": 128}
KERNELS = {
    "attend": ("decode.kernel:attend_kernel", ATTEND, {}, 4),
    "attend fp8": ("decode.kernel:attend_kernel", ATTEND, FP8, 4),
    "attend capped": ("decode.kernel:attend_kernel", ATTEND | {"CAPPED": True, "SELECTS": False}, {}, 4),
    "merge": ("decode.kernel:merge_kernel", HEAD | {"MAX_SPLITS": 64}, {}, 4),
    "sparse_indptr": ("select.kernel:sparse_indptr_kernel", {"BLOCK": 64}, {}, 4),
    "shortlist": ("select.shortlist:shortlist_kernel", SHORTLIST, {}, 8),
    "emit": ("select.kernel:emit_kernel", {"SELECTS": True, "MOST": 1024, "HEADS": 32, "BLOCK": 4096}, {}, 16),
    "full rank": ("select.full_ranking:full_rank_kernel", {"SELECTED_PAD": 2048, "BLOCK": 4096}, {}, 16),
    "full emit": ("select.full_ranking:full_emit_kernel", {"KEY_PASSES": 2, "BLOCK": 4096}, {}, 16),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_compiles_for_hopper(kernel: tuple[str, dict[str, object], dict[str, str], int]) -> None:
    path, constants, types, warps = kernel
    request = json.dumps([path, constants, TYPES | types, warps])
    done = subprocess.run([sys.executable, "-c", COMPILE, request], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    size, shared = map(int, done.stdout.split()[-2:])
    assert size > 0
    assert shared <= 227 << 10
