"""The configuration: mqauth.toml, read, checked, and made into what runs."""
