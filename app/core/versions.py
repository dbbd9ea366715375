"""etcd's versions, and which of their promises can be trusted."""

from __future__ import annotations

import re

Version = tuple[int, int, int]
UNKNOWN: Version = (0, 0, 0)


def parse_version(text: str) -> Version:
    """Parse ``"3.5.16"`` to (3, 5, 16). A pre-release counts as its release; other text gives ``UNKNOWN``."""
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else UNKNOWN


# The releases whose progress is trusted, for people.
TRUSTED_PROGRESS = "3.4.25, 3.5.8 or later"


def progress_is_trusted(version: Version) -> bool:
    """Whether an on-demand progress answer (watch id -1) covers everything that came before it.

    Before 3.4.25 and 3.5.8 the answer overtakes events: 17-20 % of live events came after an answer that covered them
    (etcd #15220; measured on 3.4.23 and 3.5.1).
    """
    if version < (3, 5, 0):
        return version >= (3, 4, 25)
    return version >= (3, 5, 8)


def known_to_lose_events(version: Version) -> bool:
    """Whether this version is known to lose events.

    A delete exactly at a compaction revision is lost for a watch that starts there (etcd #18089: seen on 3.4.23 and
    3.5.1, not on 3.5.16), or after a restart (#19179; fixed in 3.4.36 and 3.5.18, hence the bound). The gateway proves
    its own resumes against that; other clients may not.
    """
    if version == UNKNOWN:
        return False
    if version < (3, 5, 0):
        return version < (3, 4, 36)
    return version < (3, 5, 18)


def may_lose_events(version: Version) -> bool:
    """Whether this version is not known to keep all events. A watch that may have been slow must then prove itself."""
    return version == UNKNOWN or known_to_lose_events(version)


def known_to_diverge(version: Version) -> bool:
    """Whether a crash can make a member of this version differ from the others for ever.

    The member may apply an entry twice (etcd #13766, fixed in 3.5.3); seen on 3.5.1 within a minute of ``kill -9``
    under load.
    """
    return (3, 5, 0) <= version <= (3, 5, 2)
