"""etcd-watch-gateway: follow etcd keys over HTTP, on shared and released watches."""

import os

__version__ = "0.1.0"

# gRPC reads both variables on its first import, and any module of the gateway may be the first to import gRPC.
#
# gRPC writes its own log to standard error: not as JSON, past the gateway's log, and several lines for each failed
# handshake. The failed call's error gives the same reason.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# gRPC's own resolver reads only the first line of /etc/hosts for a name (grpcio 1.85.1). An endpoint with two addresses
# there, the first of them dead, was out of reach for ever. The system's resolver returns all addresses, as curl and
# etcdctl get them, and gRPC tries the next address after 0.25 s.
os.environ.setdefault("GRPC_DNS_RESOLVER", "native")
