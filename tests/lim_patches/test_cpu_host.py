"""The stand-ins for a machine without a GPU: real where used, loud where not, absent where there is a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lim_cpu_host as cpu_host
from lim_cpu_host.sgl_kernel import assign_req_to_token_pool_cpu, copy_all_layer_kv_cache_cpu


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(("visible", "active"), [(None, "False"), ("0", "False"), ("", "True"), ("-1", "True")])
def test_a_gpu_keeps_the_stand_ins_off_unless_it_is_hidden(tmp_path: Path, visible: str | None, active: str) -> None:
    driver = tmp_path / "nvidiactl"
    driver.touch()
    code = (
        "import os; import lim_cpu_host as cpu_host; cpu_host.deactivate(); name = 'CUDA_VISIBLE_DEVICES'\n"
        f"os.environ.pop(name, 0); os.environ |= {{}} if {visible!r} is None else {{name: {visible!r}}}\n"
        f"print(cpu_host.activate([{str(driver)!r}]), cpu_host.is_active())"
    )
    assert run(code).stdout.split() == [active, active]


def test_without_a_gpu_they_are_on_once(tmp_path: Path) -> None:
    absent = [str(tmp_path / "no-such-device")]
    code = (
        "import sys; import lim_cpu_host as cpu_host; cpu_host.deactivate(); before = len(sys.meta_path)\n"
        f"print(cpu_host.activate({absent!r}), cpu_host.activate({absent!r}), len(sys.meta_path) - before)"
    )
    assert run(code).stdout.split() == ["True", "True", "2"]


def test_start_up_line_is_quiet_without_the_package() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-c", cpu_host.START_UP_LINE], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(cpu_host.gpu_device() is not None, reason="the stand-ins are never active on a GPU machine")
class TestStandIns:
    def test_unused_kernels_refuse_by_name(self) -> None:
        import sgl_kernel

        assert sgl_kernel.__doc__.startswith("Stand-in")
        with pytest.raises(NotImplementedError, match=r"sgl_kernel\.verify_tree_greedy_cpu has no CPU stand-in"):
            sgl_kernel.verify_tree_greedy_cpu(1, 2)

    def test_names_that_are_not_cpu_kernels_stay_absent(self) -> None:
        with pytest.raises(ImportError):
            from sgl_kernel import silu_and_mul  # noqa: F401
        with pytest.raises(ImportError):
            import sgl_kernel.scalar_type  # noqa: F401

    def test_other_errors_of_torchvision_are_not_forgiven(self) -> None:
        from lim_cpu_host.torchvision_ops import _TolerantLoader

        class Broken:
            def exec_module(self, _module: object) -> None:
                raise RuntimeError("something else")

        with pytest.raises(RuntimeError, match="something else"):
            _TolerantLoader(Broken()).exec_module(sys)


def test_new_slots_land_in_their_rows() -> None:
    """Against a loop over single tokens, with a request that gains nothing."""
    generator = torch.Generator().manual_seed(0)
    table = torch.full((5, 16), -7, dtype=torch.int32)
    expected = table.clone()
    rows, start = torch.tensor([3, 0, 4]), torch.tensor([2, 0, 5])
    end = torch.tensor([9, 0, 6])
    slots = torch.randperm(100, generator=generator)[:8]
    assign_req_to_token_pool_cpu(rows, table, start, end, slots, 16)
    remaining = slots.tolist()
    for row, first, last in zip(rows.tolist(), start.tolist(), end.tolist(), strict=True):
        for position in range(first, last):
            expected[row, position] = remaining.pop(0)
    assert torch.equal(table, expected)
    assert not remaining


def test_cache_rows_are_copied_in_every_buffer() -> None:
    """Two buffers of different rows; sources and targets overlap."""
    buffers = [torch.arange(40.0).view(8, 5), torch.arange(24, dtype=torch.bfloat16).view(8, 3)]
    target, source = torch.tensor([1, 2, 7]), torch.tensor([0, 1, 2])
    expected = [buffer.clone().index_copy_(0, target, buffer[source]) for buffer in buffers]
    addresses = torch.tensor([buffer.data_ptr() for buffer in buffers], dtype=torch.uint64)
    strides = torch.tensor([buffer.stride(0) * buffer.element_size() for buffer in buffers])
    copy_all_layer_kv_cache_cpu(addresses, strides, target, source)
    assert all(torch.equal(*pair) for pair in zip(buffers, expected, strict=True))
