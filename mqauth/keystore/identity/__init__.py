"""A workload's key in memory, with the WIT that vouches for it: given by hand, or renewed from an authority."""

from mqauth.keystore.identity.given import IdentityKey

__all__ = ["IdentityKey"]
