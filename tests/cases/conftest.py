"""As in tests/integration, every test with ``etcd`` runs on each etcd of this machine, slow tests only on the first."""

from __future__ import annotations

from tests.integration.conftest import _etcd, _version

__all__ = ["_etcd", "_version"]
