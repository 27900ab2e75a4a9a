"""A producer's keys on disk, and the files consumers read public keys from.

Where a keystore folder is expected a single PEM file serves too: ``signing_key`` and ``public_keys`` take
either, and read it once. ``ActiveKey`` follows a folder.
"""

from mqauth.keystore.active import ActiveKey
from mqauth.keystore.folder import Keystore, public_keys, signing_key
from mqauth.keystore.jwksfile import JWKSFile
from mqauth.keystore.ring import KeyRing, RingKey, State

__all__ = ["ActiveKey", "JWKSFile", "KeyRing", "Keystore", "RingKey", "State", "public_keys", "signing_key"]
