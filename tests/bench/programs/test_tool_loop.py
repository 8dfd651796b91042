"""What the model reads after a call of the calculator."""

from __future__ import annotations

from bench.programs.tool_loop import use_tool


def test_the_model_reads_the_result_or_the_refusal() -> None:
    assert use_tool("25 * 81") == " = 2025"
    assert use_tool("25 times 81") == " failed: not arithmetic."
