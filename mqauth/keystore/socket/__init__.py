"""A signing key that another process has, reached over a local socket."""
