"""Requests to services that keys, identities and decisions come from: bounded in time and in bytes, over TLS."""
