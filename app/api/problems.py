"""Errors as RFC 9457 problems: ``{"type","title","status","code","detail","parameter"?}``. No stack trace."""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..core.encoding import compact
from ..core.errors import GatewayError, MethodNotAllowedError, NotFoundError, TransientError, UnauthorizedError

logger = logging.getLogger("gateway.http")

# The methods of the paths that are not read.
METHODS = {"/v1/session": ("POST", "DELETE")}


def problem(error: GatewayError, *, retry_after: float | None = None) -> Response:
    """Return the response for *error*. A transient error gets ``Retry-After``, in seconds."""
    body: dict[str, Any] = {
        "type": f"urn:etcd-watch-gateway:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
    }
    if error.parameter is not None:
        body["parameter"] = error.parameter
    headers = {"Cache-Control": "no-store", **error.headers}
    if isinstance(error, TransientError):
        headers["Retry-After"] = str(math.ceil(retry_after if retry_after is not None else float(error.retry_factor)))
    if isinstance(error, UnauthorizedError):
        headers.setdefault("WWW-Authenticate", "Bearer")
    return Response(compact(body), error.status, headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Make the app answer every error with a problem."""

    async def gateway_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, GatewayError), "registered for this class"
        if error.cause:
            logger.warning("not served", extra={"path": request.url.path, "code": error.code, "cause": error.cause})
        return problem(error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "registered for this class"
        if error.status_code == MethodNotAllowedError.status:
            allowed = METHODS.get(request.scope["path"], ("GET", "HEAD"))
            use = " or ".join(allowed)
            answer = problem(MethodNotAllowedError(f"{request.method} is not allowed here; use {use}"))
            answer.headers["Allow"] = ", ".join(allowed)
            return answer
        text = f"there is no endpoint at {request.url.path[:128]!r}; /docs lists the endpoints"
        return problem(NotFoundError(text, code="no-such-path"))

    async def validation_error(_request: Request, _error: Exception) -> Response:
        # No endpoint declares its parameters to FastAPI (they are bytes), so this is never the client's fault.
        return problem(GatewayError("the gateway could not parse the request"))

    async def unexpected(request: Request, error: Exception) -> Response:
        logger.error("unexpected error", exc_info=error, extra={"path": request.url.path})
        return problem(GatewayError("internal error; the gateway's log has the details"))

    app.add_exception_handler(GatewayError, gateway_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(Exception, unexpected)
