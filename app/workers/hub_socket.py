"""The Unix socket at which the hub serves its workers: in a folder that only the gateway's user can reach."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..server.sockets import BACKLOG
from ..settings import SettingsError


@contextlib.contextmanager
def private_path() -> Iterator[Path]:
    """Make a path for the hub's socket, which no other user can reach. Raises SettingsError if that cannot be."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="etcd-watch-gateway-"))
    except OSError as error:
        raise SettingsError(
            "GATEWAY_WORKERS (--workers): more than one worker needs a folder for a socket, and no temporary folder "
            f"can be written: {error.strerror}; set TMPDIR to one that can, or mount one at /tmp"
        ) from None
    try:
        yield folder / "hub"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def listen_at(path: Path) -> socket.socket:
    """Return a socket that listens at *path*. Raises SettingsError if that cannot be."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
    except OSError as error:  # "AF_UNIX path too long" has no number
        sock.close()
        raise SettingsError(
            f"GATEWAY_WORKERS (--workers): the socket {path} cannot be made: {error.strerror or error}; set TMPDIR "
            "to a folder with a shorter path, or one that can hold a socket"
        ) from None
    sock.listen(BACKLOG)
    return sock


def remove_of_dead_hub(path: Path) -> None:
    """Remove the folder of a hub that could not do so itself. A hub that still listens at *path* needs it.

    Nothing but the socket is removed with it: a worker is told the path on its command line.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(OSError):  # another worker was faster; or the folder is not the hub's
                if path.is_socket():
                    path.unlink()
                path.parent.rmdir()
        except OSError:  # BlockingIOError: many others wait to be accepted
            pass


def check_place() -> None:
    """Make the socket, and remove it. Raises SettingsError if that cannot be."""
    with private_path() as path:
        listen_at(path).close()
