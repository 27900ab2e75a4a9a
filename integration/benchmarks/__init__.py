"""Benchmarks on real brokers, their plots and tables: what ``client`` measures, and what takes more time."""
