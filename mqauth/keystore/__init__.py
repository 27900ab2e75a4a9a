"""Signing keys on the disk or behind a socket, and public keys in a JWK Set file.

``signing_key`` and ``public_keys`` read a keystore folder or a single PEM file, once. ``ActiveKey`` follows a
folder through its rotations. ``SocketSigner`` signs with the key of a ``SigningServer`` in another process. A
``ReferenceKey`` is a key of a keystore that an HSM or a service holds.
"""

from mqauth.keystore.disk.folder import Keystore, public_keys, signing_key
from mqauth.keystore.disk.ring import KeyRing, RingKey, State
from mqauth.keystore.disk.watch import ActiveKey, JWKSFile
from mqauth.keystore.reference.key import ReferenceKey
from mqauth.keystore.socket.server import SigningServer
from mqauth.keystore.socket.signer import SocketSigner

__all__ = [
    "ActiveKey",
    "JWKSFile",
    "KeyRing",
    "Keystore",
    "ReferenceKey",
    "RingKey",
    "SigningServer",
    "SocketSigner",
    "State",
    "public_keys",
    "signing_key",
]
