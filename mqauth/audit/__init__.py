"""The audit: records, the chain they stand in, what is read from them, and misuse."""
