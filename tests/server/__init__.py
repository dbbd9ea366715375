"""The process: its signals, its standard streams, its connections."""
