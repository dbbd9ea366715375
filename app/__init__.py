"""etcd-watch-gateway: follow etcd keys over HTTP, on shared and released watches."""

__version__ = "0.1.0"
