"""Another gateway as the upstream (``GATEWAY_UPSTREAM``): an edge follows a root as the root follows etcd."""
