"""All cores of a machine: one hub holds the feeds and the connection to etcd, and workers serve the clients.

The hub is a gateway without clients of its own. Each worker is a gateway whose upstream is the hub, over a Unix socket
(``app.tier.hub``). The hub accepts the clients' connections, and passes each one to a worker.
"""
