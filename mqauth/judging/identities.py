"""The identity form, judged: the steps of ``mqauth.judging.judge`` as they are for a WIT and its proof.

It trusts a ``TrustDomain``, whose authority says which workload a key belongs to.

An authority's WIT stands for its workload in thousands of messages. So WITs that were good for a message are
remembered, by all their bytes and with the key object that they held under. What is remembered says that the
signature holds, and nothing of revocation, cut-off, time or policy *now*. Under another key object both signatures
are checked again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

from mqauth.errors import Reason, Rejection, require
from mqauth.judging.token import NOTHING, Readers, Times, Token
from mqauth.wire import batch, identity, jwk, jws, memo
from mqauth.wire.keys import Key, KeySet, KeySource
from mqauth.wire.message import Message

IDENTITY_LIFETIME: Final = 3600
MAX_IDENTITY_LIFETIME: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustDomain:
    """A trust domain, whose authority says which workload a key belongs to. Experimental.

    Args:
        keys: the source of the authority's keys.
        subjects: limits the authority to these subjects, by the kid of its key or by ``"*"``.
        max_identity_lifetime: the longest time that a WIT may still live, seconds.

    Raises:
        ConfigurationError: the lifetime is out of its limits, a text in place of a set, or another's keys.
    """

    vouches: ClassVar[bool] = False
    until: ClassVar[None] = None
    keys: KeySource
    subjects: Mapping[str, frozenset[str]] | None = None
    max_identity_lifetime: int = IDENTITY_LIFETIME

    def __post_init__(self) -> None:
        jwk.check_source(self.keys, "wit-svid")
        require(
            not any(isinstance(pinned, str) for pinned in (self.subjects or {}).values()),
            "the subjects of a trust domain are a set: a text would admit its substrings",
        )
        require(
            type(self.max_identity_lifetime) is int
            and 1 <= self.max_identity_lifetime <= MAX_IDENTITY_LIFETIME,
            f"max_identity_lifetime is 1 to {MAX_IDENTITY_LIFETIME} whole seconds",
        )

    def subjects_of(self, key: Key) -> frozenset[str]:
        """Return the subjects that an authority's key is limited to, none where it is not."""
        return self._pinned(key) or key.subjects or frozenset()

    def speaks_for(self, key: Key, subject: str) -> bool:
        """Tell whether an authority's key may vouch for a subject; it may unless it is limited to others."""
        # Pins of other keys alone leave this one without any subject.
        return (not self.subjects or subject in self._pinned(key)) and (
            key.subjects is None or subject in key.subjects
        )

    def _pinned(self, key: Key) -> frozenset[str]:
        pinned = self.subjects or {}
        return pinned.get(key.kid, pinned.get("*", frozenset()))


REMEMBERED: Final = 1024
MAX_CAPACITY: Final = 65_536


class _Held(NamedTuple):
    """A WIT whose signature held, the key it held under, and the workload's key."""

    wit: identity.Wit
    authority: Key
    workload: Key


class Identities:
    """WITs that were good for a message; beyond the capacity the oldest goes.

    Args:
        capacity: WITs at most, each 2.6 to 17 kB.

    Raises:
        ConfigurationError: the capacity is out of its limits.
    """

    def __init__(self, capacity: int = REMEMBERED) -> None:
        require(
            type(capacity) is int and 1 <= capacity <= MAX_CAPACITY,
            f"identities is 1 to {MAX_CAPACITY} in number",
        )
        self._capacity = capacity
        self._held = memo.Recent[bytes, _Held](capacity)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Identities], tuple[int]]:
        return type(self), (self._capacity,)

    def open(
        self, first: bytes, rest: bytes, tokens: memo.Memo[bytes, Token], readers: Readers
    ) -> tuple[Token, batch.Proof | None, bool]:
        """Take an identity form apart: steps (2) to (4).

        Args:
            first: the WIT, as ``identity.is_wit`` knows it.
            rest: what follows the first tilde.
            tokens: remembered batch tokens.
            readers: what reads the proofs of messages of this form.

        Returns:
            The token, the message's place in a batch, and whether there is nothing to learn of the token.

        Raises:
            Rejection: the reason of the first step that fails.
        """
        text, more, position = rest.partition(identity.SEPARATOR)
        if identity.SEPARATOR in position:
            raise Rejection(
                Reason.TOKEN_MALFORMED,
                "more than an identity, a proof and a place in a batch",
            )
        whole, behind = first + identity.SEPARATOR + text, position if more else None
        known = tokens.get(whole) if more else None
        if known is not None:
            return known, batch.proof_of(behind, known.claims), True
        if len(first) > identity.MAX_WIT:
            raise Rejection(
                Reason.TOKEN_OVERSIZE, f"an identity over {identity.MAX_WIT} bytes"
            )
        held = self._held.get(first)
        if held is None:
            # Step (2) is of both: a WIT that is no JWS comes before the type of its proof.
            identity.take_apart(first)
        opened = identity.open_proof(text)
        if held is not None and not more:
            # what it reads has the digest of this WIT, or it would be no payload of its form
            reader = readers.get((held.wit.digest.encode("ascii"), len(opened.payload)))
            read = None if reader is None else reader.read(opened.payload)
            if read is not None:
                return (
                    Token(
                        whole, opened._replace(kid=held.wit.identity.kid), read, held.wit
                    ),
                    None,
                    True,
                )
        parsed = identity.parse_proof(opened)
        proof, wit = (
            batch.proof_of(behind, parsed.claims),
            identity.parse_wit(first) if held is None else held.wit,
        )
        if wit.digest != parsed.wth:
            raise Rejection(
                Reason.IDENTITY_MISMATCH, "the proof belongs to another identity"
            )
        who = wit.identity
        claims = parsed.claims._replace(iss=who.trust_domain, sub=who.subject)
        return (
            Token(whole, parsed.opened._replace(kid=who.kid), claims, wit),
            proof,
            False,
        )

    def authenticate(
        self,
        token: Token,
        wit: identity.Wit,
        keys: KeySet,
        key: Key,
        appended: float | None,
    ) -> None:
        """Take what the identity form adds to steps (6) and (7): algorithm, cut-off, and both signatures.

        Args:
            token: of the message.
            wit: its WIT.
            keys: the key set of its trust domain.
            key: the authority's, found by ``kid`` and not revoked.
            appended: when the broker says it appended the message, if it may be believed.

        Raises:
            Rejection: ``algorithm_forbidden``, ``key_revoked``, ``signature_invalid`` or ``identity_invalid``.
        """
        if not key.allows(wit.opened.algorithm):
            raise Rejection(
                Reason.ALGORITHM_FORBIDDEN,
                "the identity names another algorithm than its key has",
            )
        # The broker's evidence saves a message that is older than the cut-off.
        who, cutoff = wit.identity, keys.cutoffs.get(wit.identity.subject)
        if (
            cutoff is not None
            and (who.issued is None or who.issued < cutoff.before)
            and (appended is None or appended >= cutoff.before)
        ):
            raise Rejection(Reason.KEY_REVOKED, "the subject was cut off")
        if token.key is not key:
            held = self._held.get(wit.text)
            if held is not None and held.authority is key:
                workload = held.workload
            else:
                # What is remembered has no signature any more; under another key object it is read again.
                whole = wit if wit.opened.payload else identity.parse_wit(wit.text)
                try:
                    jws.verify(whole.opened, key)
                except Rejection as error:
                    raise Rejection(
                        error.reason, f"{error.detail}, of the identity"
                    ) from error
                workload = identity.workload_key(wit)
            # Equal as texts, so that a message has one form.
            if token.opened.algorithm != wit.jwk["alg"]:
                raise Rejection(
                    Reason.ALGORITHM_FORBIDDEN,
                    "the proof names another algorithm than its key has",
                )
            jws.verify(token.opened, workload)
            token.key = key

    def keep(self, wit: identity.Wit, authority: Key) -> None:
        """Remember a WIT whose steps (6) to (10) were passed, unless it is remembered.

        Not once its signature holds: whoever reads a queue has many that have ended, and could push others out.

        Args:
            wit: of a message.
            authority: the key that its signature held under.
        """
        held = self._held.get(wit.text)
        if held is not None and held.authority is authority:
            return
        workload = identity.workload_key(wit)
        with self._lock:
            # Without what only its signature needs, which is more than half of what it takes.
            opened = wit.opened._replace(signing_input=b"", payload=b"", signature=b"")
            self._held.keep(
                wit.text, _Held(wit._replace(opened=opened), authority, workload)
            )


def check_life(  # noqa: PLR0917 - all that one life is judged by
    wit: identity.Wit,
    key: Key,
    longest: int,
    times: Times,
    message: Message,
    issued: int,
    received: float,
    waived: frozenset[Reason] = NOTHING,
) -> None:
    """Judge the authority's key, and ``iat``, ``nbf`` and ``exp`` of a WIT: the first half of step (9).

    Args:
        wit: of the message.
        key: the authority's.
        longest: seconds that a WIT may still live.
        times: the settings of time.
        message: as the broker delivered it.
        issued: UTC seconds, ``iat`` of the proof.
        received: UTC seconds at which this process first received the delivery.
        waived: the reasons that a release waives.

    Raises:
        Rejection: the reason of the first rule that is broken, unless it is waived; ``append_time_missing``.
        Unavailable: ``append_time_unavailable``.
    """
    who, leeway = wit.identity, times.leeway
    moment, waived = times.moment(message, issued, received, waived)
    # By the moment and not by ``iat``: whoever has a retired key can write any, and a WIT may have none.
    if (
        key.expires is not None
        and moment >= key.expires
        and Reason.KEY_EXPIRED not in waived
    ):
        raise Rejection(Reason.KEY_EXPIRED, "the authority's key had retired")
    if who.issued is not None and who.issued > moment + leeway:
        raise Rejection(Reason.ISSUED_IN_FUTURE, "issued in the future, of the identity")
    if wit.begins is not None and wit.begins > moment + leeway:
        raise Rejection(Reason.NOT_YET_VALID, "not valid yet, of the identity")
    ended = who.expires + leeway <= moment or (
        who.issued is not None and who.expires <= who.issued
    )
    if ended and Reason.EXPIRED not in waived:
        raise Rejection(Reason.EXPIRED, "expired, of the identity")
    if (
        who.expires - moment > longest + leeway
        and Reason.LIFETIME_EXCESSIVE not in waived
    ):
        raise Rejection(
            Reason.LIFETIME_EXCESSIVE, "lives longer than the limit, of the identity"
        )


def ends_of(wit: identity.Wit, key: Key, times: Times) -> float:
    """Return until when the outcome of ``check_life`` at ``"consume"`` stays as it is, UTC seconds of receipt."""
    until = float(wit.identity.expires + times.leeway)
    return until if key.expires is None else min(until, float(key.expires))
