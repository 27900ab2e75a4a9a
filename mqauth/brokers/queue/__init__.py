"""A consumer of a queue in an event loop, for every client library."""
