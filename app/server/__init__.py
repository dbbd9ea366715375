"""uvicorn as the gateway runs it: one process, its protocol, its signals."""
