"""``etcd-watch-gateway check``: proves at a running gateway that streams release what they hold."""
