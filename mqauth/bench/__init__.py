"""``mqauth bench``: the cost of mqauth beside the bare clients."""
