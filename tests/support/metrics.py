"""Metrics of a real etcd and of a gateway."""

from __future__ import annotations

import httpx

from tests.support.waiting import HANG


async def etcd_metric(endpoint: str, name: str, **labels: str) -> float:
    """The sum of all series of a metric at etcd's ``/metrics`` that have *labels*; 0 without a series."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{endpoint}/metrics", timeout=HANG)
    answer.raise_for_status()
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        float(line.rpartition(" ")[2])
        for line in answer.text.splitlines()
        if line.startswith((f"{name} ", f"{name}{{")) and all(pair in line for pair in wanted)
    )


async def gateway_metric(http: httpx.AsyncClient, name: str) -> float:
    """The value of a gateway's metric that has no labels."""
    answer = await http.get("/metrics")
    answer.raise_for_status()
    (found,) = [line for line in answer.text.splitlines() if line.startswith(f"etcd_watch_gateway_{name} ")]
    return float(found.rpartition(" ")[2])
