"""Signing keys on the disk, and public keys in a JWK Set file.

``signing_key`` and ``public_keys`` read a keystore folder or a single PEM file, once. ``ActiveKey`` follows a
folder through its rotations.
"""

from mqauth.keystore.disk.folder import Keystore, public_keys, signing_key
from mqauth.keystore.disk.ring import KeyRing, RingKey, State
from mqauth.keystore.disk.watch import ActiveKey, JWKSFile

__all__ = [
    "ActiveKey",
    "JWKSFile",
    "KeyRing",
    "Keystore",
    "RingKey",
    "State",
    "public_keys",
    "signing_key",
]
