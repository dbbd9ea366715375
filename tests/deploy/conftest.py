"""Both versions of Helm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import helm
from tests.support.chart import get_helm


@pytest.fixture(name="tool", params=sorted(helm.WHEELS), ids="helm{}".format)
def _tool(request: pytest.FixtureRequest) -> Path:
    return get_helm(request.param)
