"""What ``mqauth bench`` runs: the cost of mqauth beside the bare clients and what people use in its place."""
