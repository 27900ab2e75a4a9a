"""Replay stores that all consumers of a scope share. Each module imports the client library of its store."""
