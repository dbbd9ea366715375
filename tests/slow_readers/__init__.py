"""Subscribers that are slow or stuck, over real sockets that are not read (the fourth promise: bounded)."""
