"""Messages of one producer and one form, each under a token of its own, judged by what differs.

What all their tokens have in common was judged for the first (``template``). Signature, times, key and replay are
judged for each. Only the plain case ends here; what is not plain, or not right, is left to the steps of ``judge``.
A signature that does not hold is told at once, as the first thing that is wrong: checking it again costs most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from mqauth import base64url, envelope, jws, template
from mqauth.claims import Binding, Claims
from mqauth.flow import is_async
from mqauth.form import Form, form_of, is_small
from mqauth.judging.delivery import Delivery
from mqauth.keys import KeySet
from mqauth.message import Message
from mqauth.policy import Allow, Policy
from mqauth.template import Template
from mqauth.verified import Verified
from mqauth.verifier import Candidate, Verifier

_REMEMBERED: Final = 4096


class _Kind(NamedTuple):
    """How messages of one producer and one form are judged."""

    template: Template
    algorithm: str
    kid: str
    keys: KeySet
    keys_now: Callable[[], Any]
    headers: Callable[[Message], bytes]


class Kindred:
    """Judges messages like one that was accepted: steps 1 to 12, in the plain case.

    Args:
        verifier: judged the first of them.
        policy: permitted it; only of ``Allow`` it is known that it says the same again.
    """

    def __init__(self, verifier: Verifier, policy: Policy) -> None:
        self._verifier = verifier
        self._constant = type(policy) is Allow and not verifier.asks_users
        self._kinds: dict[tuple[bytes, Form], _Kind] = {}

    def judge(self, delivery: Delivery, token: bytes) -> Verified | None:
        """Return the verified message, noted in its delivery; ``None`` where it is not the plain case.

        Args:
            delivery: not judged yet.
            token: its message's.

        Raises:
            Rejection: ``signature_invalid``, and then nothing else is wrong.
            Exception: whatever else is wrong; the steps of ``judge`` say what.
        """
        message = delivery.message
        head, payload, signature = token.split(b".")
        kind = self._kinds.get((head, form_of(message)))
        if kind is None or kind.keys_now() is not kind.keys or message.malformed is not None:
            return None
        raw = base64url.decode(payload)
        claims = _claims(kind, raw, message)
        if claims is None:
            return None
        opened = jws.Opened(kind.algorithm, kind.kid, head + b"." + payload, raw, base64url.decode(signature))
        delivery.candidate, delivery.key_set = candidate, _ = Candidate(opened, claims), kind.keys.version
        delivery.verified = found = self._verifier.verify_alike(message, candidate, kind.keys, delivery.received)
        return found

    def learn(self, delivery: Delivery, keys: KeySet) -> None:
        """Note how a message was judged that was verified and permitted, by no release."""
        candidate, message = delivery.candidate, delivery.message
        if candidate is None or not self._constant:
            return
        opened, keys_now = candidate.opened, self._verifier.source(candidate).key_set
        found = template.template_of(opened.payload, candidate.claims)
        form = form_of(message)
        if found is None or is_async(keys_now) or not is_small(form):
            return
        if len(self._kinds) >= _REMEMBERED:
            self._kinds.clear()
        headers = envelope.headers_inputs(message, candidate.claims.mqa.hdr)
        head = opened.signing_input.partition(b".")[0]
        self._kinds[head, form] = _Kind(found, opened.algorithm, opened.kid, keys, keys_now, headers)


def _claims(kind: _Kind, payload: bytes, message: Message) -> Claims | None:
    """Return the claims of a payload that fits its message, ``None`` where it does not."""
    bod = None if message.body is None else base64url.digest(message.body)
    key = None if message.key is None else base64url.digest(message.key)
    hds = base64url.digest(kind.headers(message))
    own = template.own(kind.template, payload, (bod, key, hds))
    if own is None:
        return None
    like = kind.template.claims
    binding = Binding(message.destination, bod, key, like.mqa.hdr, hds)
    return Claims(like.iss, like.sub, like.aud, own.iat, own.exp, own.jti, binding)
