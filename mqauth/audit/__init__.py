"""The audit: records of verdicts, the chain they are in, queries of them, and misuse detectors."""
