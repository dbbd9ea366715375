"""Fixtures of the matrix, and the figures that its tests report."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.clients.gateways import Gateways
from tests.matrix.programs import TOKEN
from tests.support.embedded import EmbeddedEtcd


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark all tests of this folder. Without ``-m matrix``, keep the short ones."""
    own = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in own:
        item.add_marker("matrix")
    long = [item for item in own if not item.get_closest_marker("short")]
    if long and "matrix" not in str(config.option.markexpr):
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(name="gateways")
async def _gateways(etcd: EmbeddedEtcd, tmp_path: Path) -> AsyncIterator[Gateways]:
    """A gateway that asks for a token, and that a test kills and starts again on the same port."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    async with Gateways(etcd.endpoint, {"GATEWAY_TOKEN_FILE": str(file)}) as gateways:
        await gateways.start(0)
        yield gateways


@pytest.fixture(name="figures")
def _figures(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Reports a text, which the run prints at its end."""

    def report(text: str) -> None:
        record_property("figures", text)

    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print all figures."""
    reports = [one for group in ("passed", "failed") for one in terminalreporter.stats.get(group, ())]
    for report in reports:
        for name, text in report.user_properties:
            if name == "figures":
                terminalreporter.section(report.nodeid, "-")
                terminalreporter.write_line(str(text))
