"""Replay stores that all consumers of a scope share; each imports its client library."""
