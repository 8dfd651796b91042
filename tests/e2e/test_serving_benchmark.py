"""SGLang's own client against a real server: both workloads complete, and prefixes are shared."""

from __future__ import annotations

import argparse

import httpx
import pytest

from lim_sglang.tools.servers.process import ServerProcess

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("place", [0, 1], ids=["random", "shared-prefix"])
def test_a_workload_completes(lim_server: ServerProcess, place: int) -> None:
    from bench.speed.serving import MEASURED, run_client, workloads

    args = argparse.Namespace(requests=4, groups=2, input=96, output=6, tokenizer=None, timeout=600.0)
    workload = workloads(args)[place]
    figures = run_client(lim_server.url, workload, "inf", args)
    assert list(figures) == list(MEASURED)
    assert figures["completed"] == workload.size == 4
    assert all(value > 0 for value in figures.values())


def test_a_server_that_refuses_is_named(lim_server: ServerProcess) -> None:
    from bench.speed.serving import ServingError, Workload, run_client

    args = argparse.Namespace(tokenizer=None, timeout=600.0)
    unknown = Workload("unknown", 1, ("--dataset-name", "no-such-set"))
    with pytest.raises(ServingError, match=r"sglang\.bench_serving .* failed at http.*no-such-set"):
        run_client(lim_server.url, unknown, "inf", args)
    assert httpx.get(f"{lim_server.url}/v1/models", timeout=60).is_success
