"""The page at ``/``: one file. Its content security policy allows only the page's own script and style."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response


def content_security_policy(page: str) -> str:
    """Return a policy with the hashes of the page's own script and style.

    The page may connect to this origin only, and no other page may frame it.
    """
    hashes = {
        tag: " ".join(
            f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {hashes['script']}; "
        f"style-src {hashes['style']}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Page:
    """The endpoint. Without *admin*, the page omits its links to the endpoints on ``GATEWAY_ADMIN_PORT``."""

    def __init__(self, *, admin: bool) -> None:
        self._text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        if not admin:
            self._text = re.sub("<!-- admin -->.*?<!-- /admin -->", "", self._text, flags=re.DOTALL)
        self._headers = {
            "Cache-Control": "no-cache",
            "Content-Security-Policy": content_security_policy(self._text),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }

    async def get(self, _request: Request) -> Response:
        """Answer with a page that follows a prefix."""
        return HTMLResponse(self._text, headers=self._headers)
