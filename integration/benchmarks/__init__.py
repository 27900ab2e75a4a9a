"""Benchmarks on real brokers, their plots and tables: what `mqauth bench` runs, and what takes more time."""
