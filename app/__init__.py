"""etcd-watch-gateway: follow etcd keys over HTTP, on shared and released watches."""

import os

__version__ = "0.1.0"

# gRPC reads both of these when it is imported first, and any module of ours may be the one that imports it.
#
# gRPC's own log goes to standard error, past ours and not as JSON, several lines for each handshake that fails; what it
# has to say is in the reason of the failed call too.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Its own resolver takes the first line of /etc/hosts for a name and no other (grpcio 1.85.1): an endpoint with two
# addresses there, of which the first is dead, was out of reach for ever. The system's resolver gives all, as curl and
# etcdctl get them, and gRPC tries the next after 0.25 s.
os.environ.setdefault("GRPC_DNS_RESOLVER", "native")
