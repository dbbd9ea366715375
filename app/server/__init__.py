"""uvicorn as the gateway runs it: one process, with our protocol, sockets and signals."""
