"""``etcd-watch-gateway dev``: a gateway with an embedded etcd, to try the gateway."""
