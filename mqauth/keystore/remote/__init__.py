"""Public keys of an issuer: how they are published, fetched, cached, and purged."""
