"""A producer's keys on disk, and the files consumers read public keys from.

Where a keystore folder is expected a single PEM file serves too: ``signing_key`` and ``public_keys`` take
either, and read it once. ``ActiveKey`` follows a folder.
"""

from mqauth.keystore.disk.active import ActiveKey
from mqauth.keystore.disk.folder import Keystore, public_keys, signing_key
from mqauth.keystore.disk.ring import KeyRing, RingKey, State
from mqauth.keystore.remote.jwks_file import JWKSFile

__all__ = ["ActiveKey", "JWKSFile", "KeyRing", "Keystore", "RingKey", "State", "public_keys", "signing_key"]
