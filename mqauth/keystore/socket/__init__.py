"""Signing over a local socket."""
