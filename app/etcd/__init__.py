"""The upstream: etcd over gRPC. It decides nothing about feeds; what it hears it hands on in the core's words."""

import os

# gRPC's own log goes to standard error, past ours and not as JSON, several lines for each handshake that fails; what it
# has to say is in the reason of the failed call too. Read when grpc is imported first.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
