"""The process between ``dev`` and etcd. When its parent has ended, it kills etcd and removes etcd's folder.

``python -I -S watchdog.py PARENT FOLDER COMMAND...`` starts COMMAND and writes COMMAND's pid as a line to standard
output. Standard input is the read end of a pipe; only the parent holds the write end. The watchdog runs by its path and
imports nothing of the gateway, because every start of an etcd waits for it.

The watchdog ends when COMMAND ends. At a signal it kills COMMAND and keeps FOLDER. When the parent has ended, it kills
COMMAND and removes FOLDER.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import sys

PR_SET_PDEATHSIG = 1
# Seconds between two checks of the parent. The pipe shows the parent's end at once, unless a fork of the parent still
# holds the write end open.
LOOK = 0.5


def watch(parent: int, folder: str, command: list[str]) -> None:
    """Write the pid of *command*, and run it until it ends, a signal comes, or *parent* has ended."""
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
            # Nobody writes to the pipe, so it becomes readable only when its write end is closed.
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
    """Start *command* and return its pid. On Linux, *command* is killed when this process ends.

    *command* reads nothing, and writes only to standard error.
    """
    # Load prctl before the fork: between fork and exec, a process should do as little as possible.
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    watchdog = os.getpid()
    child = os.fork()
    if child == 0:  # pragma: no cover  # between fork and exec nothing can save what was reached
        try:
            if prctl is not None:
                # The kernel sends the signal when the forking thread ends, and this process has only that thread. The
                # setting survives exec.
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
    return child


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
