"""The attack classes against other software that signs messages; ``python -m integration.peers`` runs them."""
