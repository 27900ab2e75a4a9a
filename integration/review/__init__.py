"""Reviewing dead letters on real brokers."""
