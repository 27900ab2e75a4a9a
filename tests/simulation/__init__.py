"""A simulator: the whole code with its real clients, in virtual time, against simulated brokers and seeded faults.

``python -m tests.simulation --seeds 100`` runs a hundred schedules; ``tests/simulation/README.md`` says the rest.
"""
