"""Replay stores: of one process, in memory, and one that all consumers share, which imports its client library."""
