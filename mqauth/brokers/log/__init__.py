"""Consumers and producers of a log on threads, and its records, for every client library."""
