"""Probes and metrics: ``/livez``, ``/readyz``, ``/metrics``."""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from ..core.merged_feeds import merge_feeds, merge_pins
from ..core.merged_metrics import merge_metrics
from ..core.timestamps import rfc3339
from ..gateway import Gateway
from ..metrics import families_of, registry_of
from ..ports import OUT_OF_REACH, Workers
from ..watch.statistics import PinStatistics
from .feeds import FeedsEndpoint, describe_pin
from .from_hub import ask_hub, body_of
from .json_answer import NO_STORE, json_answer
from .requests import check_operator


class HealthEndpoints:
    """The endpoints."""

    def __init__(
        self, gateway: Gateway, registry: CollectorRegistry, feeds: FeedsEndpoint, workers: Workers | None = None
    ) -> None:
        self._gateway = gateway
        self._registry = registry
        self._feeds = feeds
        self._workers = workers

    async def livez(self, _request: Request) -> Response:
        """Answer whether the process can go on. This asks neither etcd nor the feeds."""
        if self._gateway.broken.is_set():
            return json_answer({"status": "broken: see the log"}, 503)
        return json_answer({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        """Answer whether this instance is ready: from the first answer of etcd, and of each pin, until the drain.

        The body names the endpoint and, if etcd is out of reach, the reason. It lists the pins that are not held.
        """
        if self._gateway.hub is None:
            missing, body = self._of_etcd()
        else:
            body = body_of(await ask_hub(self._gateway, "/readyz", expected=(200, 503)))
            missing = "" if body["status"] == "ok" else str(body["status"])
            # The worker refuses the ranges of a pin that only the hub can hold.
            pins = merge_pins(body.get("pins", ()), [describe_pin(pin) for pin in self._pins_not_held()])
            if pins:
                body["pins"] = pins
        access, tls = self._gateway.access, self._gateway.tls
        if not missing and not access.ready:
            missing = "waiting for the issuer's keys"
        if self._gateway.draining:
            missing = "draining"
        troubles = {name: trouble for name, trouble in access.troubles().items() if trouble}
        if troubles:
            body["access"] = troubles
        if tls is not None and tls.files.trouble:
            body["tls"] = tls.files.trouble
        return json_answer(body | {"status": missing or "ok"}, 503 if missing else 200)

    def _of_etcd(self) -> tuple[str, dict[str, Any]]:
        """Return what etcd and the pins keep waiting for, and the body about them."""
        now = self._gateway.upstream.statistics()  # not ``Gateway.statistics``: a probe need not count subscribers
        condition = now.condition
        # After etcd has once answered (to any request), the feeds report its absence to their clients as "stale".
        # Its absence is then not a reason for all replicas to leave the Service at once.
        # An etcd that can never be watched does not make the instance ready: such an etcd is a wrong setting.
        reached = now.reached and condition.told == OUT_OF_REACH
        # A pin is waited for until it has been live once, so that a rollout sends clients only to instances that have
        # the pinned state. A pin that cannot be held is not waited for: it would keep all replicas from every range.
        pins = self._pins_not_held()
        missing = ""
        if not reached:
            missing = "waiting for etcd"
        elif any(pin.state == "waiting" for pin in pins):
            missing = "waiting for pins"
        etcd = {"endpoint": condition.endpoint, "state": condition.state, "since": rfc3339(condition.since)}
        if condition.reason:
            etcd["reason"] = condition.reason
        body: dict[str, Any] = {"status": "", "etcd": etcd}
        if pins:
            body["pins"] = [describe_pin(pin) for pin in pins]
        return missing, body

    def _pins_not_held(self) -> list[PinStatistics]:
        return [pin for pin in self._gateway.registry.feeds.pin_statistics() if pin.state != "held"]

    async def metrics(self, request: Request) -> Response:
        """Answer with the metrics, in Prometheus' text format."""
        # The static token alone does not guard the metrics. On the admin port nothing does.
        if self._gateway.access.guarded and self._gateway.settings.admin_port is None:
            await check_operator(self._gateway, request.scope)
        # With a session the credentials are a cookie, which does not keep shared caches away.
        return Response(await self._metrics(), headers=NO_STORE, media_type=CONTENT_TYPE_LATEST)

    async def _metrics(self) -> bytes:
        if self._gateway.hub is not None:
            return (await ask_hub(self._gateway, "/metrics")).body
        if self._workers is None:
            return generate_latest(self._registry)
        reports = await self._workers.reports()
        own = self._feeds.describe(None)
        channels = merge_feeds(own, [one.feeds for one in reports])["channels"]
        counted = [*(one.metrics for one in reports), self._workers.ended]
        return generate_latest(registry_of(merge_metrics(families_of(self._registry), counted, channels)))
