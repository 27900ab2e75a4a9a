"""The chaos table on real brokers: one test a row, each prints what became of what was sent."""
