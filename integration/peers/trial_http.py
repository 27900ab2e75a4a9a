"""http-message-signatures against the attack classes: a message as a POST to its queue.

Twice: with the library's defaults, and with care, the body given and the components required.
"""

from __future__ import annotations

import datetime
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures import (
    HTTPMessageSigner,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
)
from http_message_signatures.algorithms import ED25519
from http_message_signatures.exceptions import HTTPMessageSignaturesException

from mail import FORGED, OTHER, Mail, Trial, outcome  # isort: skip

NAME = "http-message-signatures"
PACKAGE = "http-message-signatures"
COVERED = ("@method", "@authority", "@target-uri", "content-type", "type")
KEYS = {name: Ed25519PrivateKey.generate() for name in ("orders", "stock")}
STRANGER = Ed25519PrivateKey.generate()
DOCUMENTED = (HTTPMessageSignaturesException,)


class Keys(HTTPSignatureKeyResolver):
    """Finds keys by their names.

    Args:
        forger: signs in everybody's name.
    """

    def __init__(self, forger: Any = None) -> None:
        self._forger = forger

    def resolve_private_key(self, key_id: str) -> Any:
        """Return the key that signs."""
        return self._forger or KEYS[key_id]

    def resolve_public_key(self, key_id: str) -> Any:
        """Return the key that verifies."""
        if key_id not in KEYS:
            raise HTTPMessageSignaturesException("no such key")
        return KEYS[key_id].public_key()


class Peer:
    """Signs and verifies.

    Args:
        careful: gives the body, and requires components.
    """

    def __init__(self, careful: bool) -> None:
        self.careful = careful

    def seal(
        self, mail: Mail, name: str = "orders", forger: Any = None, **rest: Any
    ) -> Mail:
        """Return the mail with its two headers."""
        request = _request(mail)
        covered = (
            {"covered_component_ids": COVERED, "body": mail.body} if self.careful else {}
        )
        signer = HTTPMessageSigner(signature_algorithm=ED25519, key_resolver=Keys(forger))
        signer.sign(request, key_id=name, **(covered | rest))
        return replace(mail, headers=dict(request.headers))

    def receive(self, mail: Mail) -> Any:
        """Return what a handler is given."""
        required = (
            {"require_components": COVERED, "body": mail.body} if self.careful else {}
        )
        verifier = HTTPMessageVerifier(signature_algorithm=ED25519, key_resolver=Keys())
        found = verifier.verify(_request(mail), **required)
        assert found
        return found

    def twice(self, mail: Mail) -> None:
        """Receive the mail two times."""
        self.receive(mail)
        self.receive(mail)

    def trials(self) -> dict[int, Trial]:
        """Return a trial for each class that can be mounted, by the number of the class."""
        seal, receive, honest = self.seal, self.receive, self.seal(Mail())
        forged = seal(Mail(), forger=STRANGER)
        signature, given = honest.headers["Signature"], honest.headers["Signature-Input"]
        two = honest.but(
            Signature=f"{signature}, evil=:AAAA:",
            Signature_Input=f"{given}, evil{given[given.index('=') :]}",
        )
        ahead, past = (
            datetime.datetime.now() + datetime.timedelta(hours=1),
            datetime.timedelta(days=400),
        )
        late = {"created": datetime.datetime.now() - past}
        found = {
            0: lambda: receive(honest),
            1: lambda: receive(
                honest.but(Signature_Input=given.replace("ed25519", "none"))
            ),
            2: lambda: receive(
                honest.but(Signature_Input=given.replace("ed25519", "hmac-sha256"))
            ),
            9: lambda: receive(
                honest.but(
                    Signature_Input=given.replace('"orders"', '"../../etc/passwd"')
                )
            ),
            FORGED: lambda: receive(forged),
            22: lambda: receive(honest.but(Signature="pyhms=:" + "A" * 1_000_000 + ":")),
            25: lambda: receive(honest.but(Signature=signature[:-1] + "=:")),
            26: lambda: receive(two),
            32: lambda: receive(seal(Mail(), **late)),
            33: lambda: receive(seal(Mail(), created=ahead)),
            34: lambda: receive(seal(Mail(), created=ahead)),
            35: lambda: receive(seal(Mail(), nonce=None)),
            40: lambda: receive(replace(honest, body=OTHER)),
            41: lambda: receive(
                replace(seal(Mail(), covered_component_ids=(), body=None), body=OTHER)
            ),
            42: lambda: receive(honest.but(type="refunds.pay", reply_to="evil")),
            43: lambda: receive(honest.but(content_type="application/x-yaml")),
            44: lambda: receive(replace(honest, place="refunds")),
            46: lambda: receive(honest.but(type='orders.created\n"@method": GET')),
            47: lambda: receive(replace(honest, body=b"").but(Content_Digest=None)),
            48: lambda: receive(replace(honest, body=b'{"amount":10}')),
            49: lambda: receive(honest.but(Signature=None, Signature_Input=None)),
            51: lambda: self.twice(honest),
            52: lambda: self.twice(honest),
            54: lambda: self.twice(honest),
            60: lambda: receive(two),
            61: lambda: receive(seal(Mail(), "stock")),
        }
        # The defaults cover nothing into which a line break could be put.
        return (
            found
            if self.careful
            else {number: trial for number, trial in found.items() if number != 46}
        )


def _request(mail: Mail) -> Any:
    return SimpleNamespace(
        method="POST",
        url=f"https://queue.example/{mail.place}",
        headers=dict(mail.headers),
        body=mail.body,
    )


def run(careful: bool) -> dict[str, str]:
    """Return the outcome of each class."""
    return {
        str(number): outcome(trial, DOCUMENTED)
        for number, trial in Peer(careful).trials().items()
    }
