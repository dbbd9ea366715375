"""The command ``config check``: what the settings are, where each is from, and whether ``serve`` would start with them.

It runs the checks with which ``serve`` begins, all of them, so that all faults are found at once.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import descriptors
from .access.setup import make_access_control
from .core.timestamps import rfc3339
from .gateway import credentials_of, quotas_of, upstream_token_of
from .memory_limit import warn_of_small_limit
from .settings import ALIASES, DEPRECATED, Settings, SettingsError, unknown_variables
from .settings_text import SECTIONS, flag_of, likely_meant, text_of, variable_of
from .tls import UpstreamTls, make_tls
from .urls import without_secrets
from .workers.count import worker_count
from .workers.hub_socket import check_place


@dataclass(frozen=True, slots=True)
class Report:
    """What the command prints: *text* to standard output, *notes* to standard error, a line each."""

    text: str
    notes: list[str]
    status: int


class _Warnings(logging.Handler):
    """Collects what the gateway would log as warnings at its start."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def check_config(settings: Settings, flags: Mapping[str, Any], environment: Mapping[str, str]) -> Report:
    """Return the report. *flags* and *environment* are what *settings* was made of."""
    warnings = _Warnings()
    logger = logging.getLogger("gateway")
    logger.addHandler(warnings)
    propagate, logger.propagate = logger.propagate, False
    try:
        faults, facts = _check(settings)
    finally:
        logger.propagate = propagate
        logger.removeHandler(warnings)
    for name in unknown_variables(environment):
        meant = likely_meant(name)
        warnings.lines.append(f"{name} is not a setting{f'; did you mean {meant}?' if meant else ''}")
    lines = list(_listing(settings, flags, environment))
    lines += ["", *facts, *([] if faults else ["ok: serve would start with these settings"])]
    notes = [*(f"warning: {line}" for line in warnings.lines), *faults]
    return Report("\n".join(lines) + "\n", notes, 2 if faults else 0)


def _check(settings: Settings) -> tuple[list[str], list[str]]:
    """Read every file as ``serve`` does. Return what is wrong, and what the files say."""
    facts: list[str] = []

    def tls() -> None:
        made = make_tls(settings, clock=time.monotonic, wall=time.time)
        if made is not None:
            facts.append(f"the TLS certificate expires at {rfc3339(made.statistics().expires)}")

    steps: tuple[Callable[[], object], ...] = (
        descriptors.raise_limit,
        lambda: make_access_control(settings, clock=time.monotonic, wall=time.time, draw=random.random),
        tls,
        lambda: credentials_of(settings),
        lambda: quotas_of(settings),
        lambda: UpstreamTls(settings, wall=time.time),
        lambda: upstream_token_of(settings),
        lambda: warn_of_small_limit(settings, worker_count(settings.workers)),
        lambda: check_place() if worker_count(settings.workers) > 1 else None,
    )
    faults: list[str] = []
    for step in steps:
        try:
            step()
        except SettingsError as error:
            faults += str(error).splitlines()
    if "://" in settings.jwt_jwks.removeprefix("file://"):
        facts.append("the issuer's keys are fetched when the gateway runs; they are not checked here")
    return faults, facts


def _listing(settings: Settings, flags: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[str]:
    values = {name: without_secrets(text_of(name, getattr(settings, name))) or "''" for name in Settings.model_fields}
    values |= {name: "none" for name in values if getattr(settings, name) in (None, ())}
    # A long list must not push every source out of sight.
    width = max(len(value) for value in values.values() if len(value) <= 40)
    for name, value in values.items():
        if name in SECTIONS:
            yield f"{SECTIONS[name]}:"
        yield f"  {name:<24}{value:<{width}}  {source_of(name, flags, environment)}"


def source_of(name: str, flags: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """Return where a setting's value is from: its flag, a variable, or ``default``."""
    if name in flags:
        return flag_of(name)
    given = {variable.upper(): variable for variable in environment}
    others = {"auth_proxy_roles_header": ALIASES, "trusted_proxies": (DEPRECATED,)}.get(name, ())
    return next((given[one] for one in (variable_of(name), *others) if one in given), "default")
