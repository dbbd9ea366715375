"""``app.watch``: running feeds and a running registry, over an etcd that a test makes fail."""
