"""``python -m integration.benchmarks.client``: the cost of mqauth beside the bare clients."""
