"""The page at ``/``, and the files that it loads: ``/page/VERSION/NAME``. Nothing comes from another host."""

from __future__ import annotations

import re
from functools import cache

from starlette.requests import Request
from starlette.responses import Response

from ..core.errors import NotFoundError
from ..page.files import INDEX, VERSION, File, make_file, read_files

# The page runs its own files only, and connects to this origin only. No other page may frame it. Its scripts cannot
# make markup of a text, so a value in etcd never becomes a script.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; script-src 'self'; style-src 'self'; worker-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types worker"
)
COMMON = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,  # a worker has the policy of its own file
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# A file's address has the version of all files, so the file at an address never changes.
FOR_EVER = "public, max-age=31536000, immutable"

read_once = cache(read_files)  # the files stay the same as long as this process runs


class PageEndpoint:
    """The endpoints. Without *admin*, the page omits its links to the endpoints on ``GATEWAY_ADMIN_PORT``."""

    def __init__(self, *, admin: bool) -> None:
        self._version, files = read_once()
        self._files = {name: file for name, file in files.items() if name != INDEX}
        text = files[INDEX].content.decode()
        if not admin:
            text = re.sub("<!-- admin -->.*?<!-- /admin -->", "", text, flags=re.DOTALL)
        self._index = make_file(text.replace(VERSION, self._version).encode(), ".html")

    async def get(self, request: Request) -> Response:
        """Answer with the page. A browser asks again each time, and gets a 304 while the page is the same."""
        return _answer(request, self._index, "no-cache")

    async def file(self, request: Request) -> Response:
        """Answer with a file.

        While two versions of the gateway share an address, a browser may ask one of them for the files of the other.
        The browser then gets what is here, and keeps it only for this time.

        Raises:
            NotFoundError: the page has no such file.
        """
        name = request.path_params["name"]
        if name not in self._files:
            raise NotFoundError(f"the page has no file {name[:128]!r}", code="no-such-path")
        known = request.path_params["version"] == self._version
        return _answer(request, self._files[name], FOR_EVER if known else "no-store")


def _answer(request: Request, file: File, cache_control: str) -> Response:
    headers = {**COMMON, "Cache-Control": cache_control, "ETag": file.etag}
    if file.etag in re.findall(r'"[^"]*"', request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "Content-Type": file.media_type})
