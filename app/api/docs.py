"""``/docs``: Swagger UI for ``/openapi.json``. It loads from this gateway alone, under any path of a proxy."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from hashlib import sha256
from importlib.resources import files

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

# FastAPI's own page loads these files from a CDN. Here they come from a package. None of the package's code is used
# (decision 12).
PACKAGE = "fastapi_offline"
ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
# Bytes that may wait in a connection's buffer: the script has 1.5 MB, and a client may read nothing.
PIECE = 64 << 10
# The validator's badge would send the address of the API to swagger.io, so it is switched off.
SCRIPT = 'SwaggerUIBundle({ url: "./openapi.json", dom_id: "#api", validatorUrl: null, deepLinking: true })'
# All addresses are relative, so that they also work under a proxy's path.
PAGE = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>API · etcd-watch-gateway</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="./docs/swagger-ui.css">
<noscript>This page needs JavaScript. <a href="./openapi.json">openapi.json</a> describes the API as data.</noscript>
<div id="api"></div>
<script src="./docs/swagger-ui-bundle.js"></script>
<script>{SCRIPT}</script>
"""
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; "
    f"script-src 'self' 'sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}'; "
    # React sets inline styles on elements.
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
COMMON = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


@cache
def _content(name: str) -> tuple[bytes, str]:
    """Return a file of Swagger UI and its ETag."""
    content = (files(PACKAGE) / "static" / name).read_bytes()
    return content, f'"{sha256(content).hexdigest()[:32]}"'


async def _page(_request: Request) -> Response:
    return HTMLResponse(PAGE, headers={**COMMON, "Content-Security-Policy": POLICY})


def _asset(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def get(request: Request) -> Response:
        content, tag = _content(name)
        headers = {**COMMON, "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(content), PIECE):
                yield content[start : start + PIECE]

        headers["Content-Length"] = str(len(content))
        return StreamingResponse(pieces(), headers=headers, media_type=ASSETS[name])

    return get


def install(app: Starlette) -> None:
    """Add ``/docs`` and the files that it loads."""
    app.add_route("/docs", _page, include_in_schema=False)
    for name in ASSETS:
        app.add_route(f"/docs/{name}", _asset(name), include_in_schema=False)
