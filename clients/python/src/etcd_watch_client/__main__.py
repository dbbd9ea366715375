"""`python -m etcd_watch_client` is `etcd-watch`."""

from .cli.main import entry

if __name__ == "__main__":
    entry()
