"""Whole programs that a test runs on real brokers."""
