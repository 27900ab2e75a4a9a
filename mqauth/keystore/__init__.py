"""A producer's keys on disk or behind a socket, and the files consumers read public keys from.

Where a keystore folder is expected a single PEM file serves too: ``signing_key`` and ``public_keys`` take
either, and read it once. ``ActiveKey`` follows a folder. ``SocketSigner`` signs with the key that a
``SigningServer`` of another process has.
"""

from mqauth.keystore.disk.active import ActiveKey
from mqauth.keystore.disk.folder import Keystore, public_keys, signing_key
from mqauth.keystore.disk.ring import KeyRing, RingKey, State
from mqauth.keystore.remote.jwks_file import JWKSFile
from mqauth.keystore.socket.server import SigningServer
from mqauth.keystore.socket.signer import SocketSigner

__all__ = [
    "ActiveKey",
    "JWKSFile",
    "KeyRing",
    "Keystore",
    "RingKey",
    "SigningServer",
    "SocketSigner",
    "State",
    "public_keys",
    "signing_key",
]
