"""The exit statuses of `etcd-watch`, and the error that carries one."""

from __future__ import annotations

DONE = 0
NOT_FOUND = 1
USAGE = 2
REFUSED = 3
UNREACHED = 4
COMMAND_FAILED = 5
LOCAL = 6
TIMED_OUT = 124
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143

HELP = """\
exit statuses:
  0    done
  1    the key, or every key, is absent
  2    the command line is wrong
  3    the gateway refuses: the token, the prefix, or a parameter
  4    no gateway answered in time
  5    the command of --exec failed, with --on-error stop
  6    a file, a folder or standard output cannot be read or written
  124  the time of --timeout is over
  130, 141, 143   ended by Ctrl-C, by a reader that left, by SIGTERM or SIGHUP"""


class CommandError(Exception):
    """Ends the command with this message and this status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
