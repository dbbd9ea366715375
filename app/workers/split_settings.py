"""The operator's settings, split: those of the hub, and those of each worker."""

from __future__ import annotations

from typing import Any

from ..settings import Settings

# The workers check the clients, end streams and keep what lingers. The hub has no clients but the workers.
_WORKERS_ONLY: dict[str, Any] = {
    "host": "127.0.0.1",
    "admin_port": None,
    "tls_cert": None,
    "tls_key": None,
    "tls_client_ca": None,
    "allow_prefixes": None,
    "token_file": None,
    "tokens_file": None,
    "policy_file": None,
    "jwt_issuer": "",
    "jwt_audience": (),
    "jwt_jwks": "",
    "jwt_algorithms": (),
    "jwt_secret_file": None,
    "session_key_file": None,
    "auth_proxy_header": "",
    "auth_proxy_roles_header": "",
    "auth_proxies": (),
    "trusted_proxies": (),
    "cors_origins": (),
    "min_prefix": 0,
    "min_rate": 0,
    "max_age": 0.0,
    "linger": 0.0,
    "keep_alive": 3600.0,
    "drain_window": 0.0,
}


def hub_settings(settings: Settings) -> Settings:
    """Return the settings of the hub."""
    return settings.model_copy(update=_WORKERS_ONLY)


def worker_settings(settings: Settings, workers: int, log_format: str) -> dict[str, Any]:
    """Return what the settings of one of *workers* differ from the defaults in, as JSON.

    Together the workers close as many streams a second as one process would.
    """
    update: dict[str, Any] = {"log_format": log_format, "drain_pace": max(1, settings.drain_pace // workers)}
    shared = settings.model_copy(update=update)
    return shared.model_dump(mode="json", include=settings.model_fields_set | set(update))
