"""The public keys of an issuer: how they are published, fetched, cached and removed."""
