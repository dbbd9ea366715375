"""Follow etcd keys over HTTP, through etcd-watch-gateway: an always-current mapping."""

from .changes import Change, Changes, Event
from .config_dict import ConfigDict
from .errors import DecodeError, EtcdWatchError, RefusedError
from .events import Entry
from .mirror import Mirror
from .replica import State

__version__ = "0.1.0"

__all__ = [
    "Change",
    "Changes",
    "ConfigDict",
    "DecodeError",
    "Entry",
    "EtcdWatchError",
    "Event",
    "Mirror",
    "RefusedError",
    "State",
]
