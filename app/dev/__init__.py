"""``etcd-watch-gateway dev``: a gateway with an etcd of its own, to try it."""
