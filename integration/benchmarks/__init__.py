"""Benchmarks on real brokers: bare client against wrapped, in alternating rounds."""
