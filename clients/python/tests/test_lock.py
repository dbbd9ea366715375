"""What one process at a time may have."""

from __future__ import annotations

from pathlib import Path

import pytest
from etcd_watch_client.cli import statuses
from etcd_watch_client.cli.follow import held
from etcd_watch_client.cli.lock import locked
from etcd_watch_client.cli.statuses import CommandError


def test_the_second_one_is_refused(tmp_path: Path) -> None:
    """A file and a folder, until the first one lets go."""
    for path in (tmp_path, tmp_path / "file"):
        with locked(path, "mine"):
            with pytest.raises(CommandError, match="mine") as refused, locked(path, "mine"):
                pass
            assert refused.value.status == statuses.LOCAL
        with locked(path, "mine"):
            pass


def test_the_file_to_continue_from(tmp_path: Path) -> None:
    """The error says what to do. The file itself may be replaced meanwhile."""
    file = tmp_path / "deep" / "position"
    with held(str(file)):
        file.write_text("new")
        with pytest.raises(CommandError, match=r"continues from .*position; end it, or use another file"):
            held(str(file)).__enter__()
    with held(str(file)), held(None), held(None):
        assert file.read_text() == "new"
