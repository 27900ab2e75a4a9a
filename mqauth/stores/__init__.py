"""Replay stores that all consumers share; each imports its own client library."""
