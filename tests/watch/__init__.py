"""``app.watch``: feeds and the registry, running, over an etcd that a test makes fail."""
