"""A stream from a reader to a socket: delivery, sinks, timers, counters."""
