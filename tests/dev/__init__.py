"""The etcd that ``dev`` starts."""
