"""The preference ``wait`` of the header ``Prefer`` (RFC 7240): how long a client is willing to wait for an answer."""

from __future__ import annotations

import re

# Seconds. Proxies end requests that take longer than a minute or two without a byte.
MOST_WAIT = 60
# No ``\s*`` in front: with it, many spaces that no name follows would take time quadratic in their number.
_PREFERENCE = re.compile(r'([!#$%&\'*+.^_`|~0-9A-Za-z-]+)\s*(?:=\s*("(?:[^"\\]|\\.)*"|[^\s,;"]*))?[^,]*(?:,|$)')


def parse_wait(header: str) -> int:
    """Return the seconds of ``wait``, at most MOST_WAIT; 0 if the header has no ``wait`` that can be read.

    Of several, the first counts (RFC 7240, section 2). A preference is never an error.
    """
    for name, value in _PREFERENCE.findall(header):
        if name.lower() == "wait":
            seconds = value.strip('"')
            if re.fullmatch(r"[0-9]+", seconds) is None:
                return 0
            # int() of a longer text takes ever longer.
            return min(int(seconds), MOST_WAIT) if len(seconds) < 10 else MOST_WAIT
    return 0
