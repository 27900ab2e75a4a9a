"""What every client can do: one table, and the suite that shows it on the real brokers."""
