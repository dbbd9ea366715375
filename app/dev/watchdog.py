"""The process between us and etcd: when we are gone, however we ended, it kills etcd and removes etcd's folder.

``python -I -S watchdog.py PARENT FOLDER COMMAND...`` starts COMMAND and writes its pid as a line to standard output.
Its standard input is the read end of a pipe whose only other end is the parent's. Run by its path, it imports nothing
of the gateway: every start of an etcd waits for it.

It ends with COMMAND. At a signal it kills COMMAND and leaves FOLDER. When the parent is gone, it does both: kills and
removes.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import sys

PR_SET_PDEATHSIG = 1
# Seconds between two looks at the parent. The pipe says at once that the parent died, unless a fork of the parent holds
# the other end open.
LOOK = 0.5


def watch(parent: int, folder: str, command: list[str]) -> None:
    """Run *command* until it ends, or a signal comes, or *parent* is gone. Say its pid first."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    ending: list[int] = []
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: ending.append(number))

    child = start(command)
    gone = orphaned = False
    try:
        os.write(1, b"%d\n" % child)
        while not (ending or orphaned):
            ready = select.select([0, woken], [], [], LOOK)[0]
            if woken in ready:
                os.read(woken, 512)
            gone = os.waitpid(child, os.WNOHANG)[0] == child
            if gone:
                break
            # Nothing is ever written to the pipe: it can be read when its other end is closed.
            orphaned = 0 in ready or os.getppid() != parent
    except OSError:
        orphaned = True
    finally:
        if not gone:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if orphaned:
            shutil.rmtree(folder, ignore_errors=True)


def start(command: list[str]) -> int:
    """Start *command*, which on Linux is killed when this process is. Its pid.

    It reads nothing, and writes to standard error alone.
    """
    # Loaded here: between fork and exec as little as possible is done.
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    watchdog = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        if prctl is not None:
            # The order is bound to the thread that forks, and this process has only one. It survives exec.
            prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != watchdog:
                os._exit(1)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.execv(command[0], command)  # noqa: S606  # no shell is wanted
    except OSError as error:
        os.write(2, str(error).encode())
    finally:
        os._exit(127)


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
