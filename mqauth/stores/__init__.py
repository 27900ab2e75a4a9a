"""Replay stores outside a process's memory: on Redis for all consumers of a scope, in a file for one process."""
