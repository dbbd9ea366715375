"""The server: its signals, its sockets, its connections, and how the process runs."""
