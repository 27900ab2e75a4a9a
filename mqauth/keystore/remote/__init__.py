"""Keys fetched from an issuer."""
