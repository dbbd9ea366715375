"""The path of a stream from a reader to a socket: delivery, sinks, transport, timers, counters."""
