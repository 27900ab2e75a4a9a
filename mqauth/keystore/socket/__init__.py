"""A signing key that another process has, behind a Unix socket."""
