"""The verdict on a token, pure: message, keys and time in, ``Verified`` or a rejection out.

The first failing step decides. Cheap steps come first, and nothing an attacker wrote is looked up before
it is bounded:

1. token present, single, small
2. three canonical base64url segments, a JSON header, a bounded kid
3. ``typ``, no other parameters, ``alg`` on the list
4. claims parse strictly; a batch token has a proof of its form and no other has one
5. the issuer is configured
6. its key: known, not revoked, of the token's algorithm
7. the signature; then the release of a reviewer, if the message carries one (``release``)
8. the audience
9. the times, those of the key first: it had not retired before the token was made
10. the subject: the key speaks for it, and the broker's user does not contradict it
11. destination, record key, body, headers, in a batch by proof; coverage
12. policy and 13. claim are asked by ``pipeline``

A batch token of an accepted message is remembered, and 2 to 4 and 7 are not taken again for its siblings. Of 6 and
8 to 10 it is remembered under which keys and times they were found right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from mqauth.errors import ConfigurationError, Reason, Rejection
from mqauth.judging.candidate import CAPACITY, Candidate, Shape, Standing, Token
from mqauth.judging.times import At, Times, is_revoked
from mqauth.judging.verified import Verified, make_verified
from mqauth.letters.authorities import ReleaseAuthorities
from mqauth.letters.release import Release
from mqauth.wire import batch, envelope, jws
from mqauth.wire import claims as claim_set
from mqauth.wire.claims import Binding, Claims
from mqauth.wire.keys import Key, KeySet, KeySource
from mqauth.wire.memo import Memo
from mqauth.wire.message import PROTECTED_PROPERTIES, Form, Message, form_of
from mqauth.wire.template import reader_of

_NOTHING: Final = frozenset[Reason]()
_TUPLE: Final = tuple.__new__  # a candidate is made for every message


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """One trusted issuer: where its keys come from and whom they may speak for.

    Args:
        keys: the source of its keys.
        subjects: kid or ``"*"`` to the subjects; ``"*"`` where the JWK itself does not say.
        vouches: the issuer is an authority whose keys sign for all its subjects.

    Raises:
        ConfigurationError: both ``subjects`` and ``vouches``, or a lone text in place of a set.
    """

    keys: KeySource
    subjects: Mapping[str, frozenset[str]] | None = None
    vouches: bool = False

    def __post_init__(self) -> None:
        if self.vouches and self.subjects:
            raise ConfigurationError("an issuer either vouches for all or pins subjects")
        if any(isinstance(pinned, str) for pinned in (self.subjects or {}).values()):
            raise ConfigurationError("pinned subjects are a set: a text would admit its substrings")

    def speaks_for(self, key: Key, subject: str) -> bool:
        """Tell whether a key may sign as a subject; a key of which nobody says so may not."""
        pinned = (self.subjects or {}).get(key.kid)
        if pinned is not None and subject not in pinned:
            return False
        if key.subjects is not None:
            return subject in key.subjects
        return self.vouches or pinned is not None or subject in (self.subjects or {}).get("*", frozenset())


class Verifier:
    """Judges tokens by the steps of this module.

    Args:
        keys: issuer to its ``KeySource``, or to an ``Issuer`` that says more.
        audience: the audience, or audiences, this consumer accepts.
        max_lifetime: longest ``exp - iat`` accepted, seconds.
        leeway: seconds of clock difference allowed, at most 60.
        at: judge times at ``"consume"`` or, on the broker's evidence, at ``"append"``.
        max_queue_age: seconds a message may have waited; required with ``at="append"``.
        append_evidence: ``"interceptor"`` where RabbitMQ overwrites ``timestamp_in_ms`` itself.
        require_headers: names that must be present and covered.
        unsigned_headers: ``"hide"`` or ``"reject"`` headers that are not covered.
        user_id: hold AMQP ``user_id`` against ``sub``: ``"subject"``, or a table of user to subject.
        release: who may release dead letters; without it every release is ``release_invalid``.

    Raises:
        ConfigurationError: no issuer, no audience, a wildcard, a release authority with an issuer's name, or
            contradicting settings.
    """

    def __init__(
        self,
        *,
        keys: Mapping[str, KeySource | Issuer],
        audience: str | Iterable[str],
        max_lifetime: int = 3600,
        leeway: int = 5,
        at: At = "consume",
        max_queue_age: int | None = None,
        append_evidence: Literal["interceptor"] | None = None,
        require_headers: Iterable[str] = (),
        unsigned_headers: Literal["hide", "reject"] = "hide",
        user_id: Literal["subject"] | Mapping[str, str] | None = None,
        release: ReleaseAuthorities | None = None,
    ) -> None:
        self.issuers = _issuers(keys)
        _refuse_shared_names(self.issuers, release)
        self._audiences = _audiences(audience)
        self._times = Times(
            max_lifetime=max_lifetime, leeway=leeway, at=at, max_queue_age=max_queue_age,
            append_evidence=append_evidence,
        )  # fmt: skip
        if unsigned_headers not in ("hide", "reject"):
            raise ConfigurationError('unsigned_headers is "hide" or "reject"')
        if user_id is not None and user_id != "subject" and not isinstance(user_id, Mapping):
            raise ConfigurationError('user_id is "subject" or a table of user to subject')
        if isinstance(require_headers, str):
            raise ConfigurationError("require_headers is a list of names")
        self._require = tuple(require_headers)
        self._reject_unsigned = unsigned_headers == "reject"
        self._covers = bool(self._require) or self._reject_unsigned
        self._user_id = user_id
        self.tokens = Memo[bytes, Token](capacity=CAPACITY)
        self.shapes = Memo[Form, Shape](lambda form: Shape(form, self.shapes.charge), capacity=CAPACITY)
        self._alike = at == "consume" and user_id is None  # then all messages of a token fare alike in 6 to 10
        self.release = release

    @property
    def retention(self) -> int:
        """Seconds past ``exp`` for which a copy might still be accepted."""
        return self._times.leeway + (self._times.max_queue_age or 0)

    def open(self, message: Message) -> Candidate:
        """Take the token of a message apart: steps 1 to 4.

        Raises:
            Rejection: the reason of the first failing step.
        """
        if message.malformed is not None:
            raise Rejection(Reason.MESSAGE_MALFORMED, message.malformed)
        shape = self.shapes[form_of(message)]
        if shape.fault is not None:
            raise Rejection(*shape.fault)
        text = envelope.token_of_value(message.headers[shape.place][1], on_kafka=shape.on_kafka)
        text, batched, behind = text.partition(batch.SEPARATOR)
        token, learnt, proof = self.tokens.get(text) if batched else None, True, None
        if token is None:
            opened = jws.take_apart(text)
            reader = shape.readers.get((opened.kid, len(opened.payload)))
            read = None if reader is None else reader.read(opened.payload)
            token, learnt = Token(text, opened, read or claim_set.parse(opened.payload)), read is not None
        if batched or token.proven is not None:
            proof = batch.proof_of(behind if batched else None, token.claims)
        return _TUPLE(Candidate, (token, proof, shape, learnt))

    def issuer(self, claims: Claims) -> Issuer:
        """Return the configured issuer of a token: step 5.

        Raises:
            Rejection: ``issuer_untrusted``.
        """
        issuer = self.issuers.get(claims.iss)
        if issuer is None:
            raise Rejection(Reason.ISSUER_UNTRUSTED, "no such issuer is configured")
        return issuer

    def authenticate(self, message: Message, token: Token, keys: KeySet, received: float) -> Key:
        """Return the key that signed a token: steps 6 and 7.

        Args:
            message: as the broker delivered it.
            token: of its candidate.
            keys: the key set of its issuer.
            received: UTC seconds at which this process first received the delivery.

        Raises:
            Rejection: ``key_unknown``, ``key_revoked``, ``algorithm_forbidden`` or ``signature_invalid``.
        """
        key = keys.by_kid.get(token.opened.kid)
        if key is None:
            raise Rejection(Reason.KEY_UNKNOWN, "the issuer has no such key")
        if key.revocation is not None and is_revoked(key, self._times.evidence(message), received):
            raise Rejection(Reason.KEY_REVOKED, "the key is revoked")
        if token.key is not key:
            jws.verify(token.opened, key)
            token.key = key
        return key

    def verify(
        self,
        message: Message,
        candidate: Candidate,
        keys: KeySet,
        received: float,
        release: Release | None = None,
    ) -> Verified:
        """Judge an opened token against its message: steps 6 to 11.

        Args:
            message: as the broker delivered it.
            candidate: what ``open`` returned for this message.
            keys: the key set of the candidate's issuer.
            received: UTC seconds at which this process first received the delivery.
            release: verified for this message; what it waives is not held against it, everything else is.

        Raises:
            Rejection: the reason of the first failing step.
            Unavailable: ``append_time_unavailable``.
        """
        token, proof = candidate.token, candidate.proof
        claims, proven = token.claims, token.proven
        stands = token.standing
        if (
            stands is None or stands.keys is not keys or not stands.since <= received < stands.until
            or release is not None
        ):  # fmt: skip
            self._believe(message, token, keys, received, release)  # 6 to 10
        shape, names = candidate.shape, claims.mqa.hdr
        encode = shape.encoders.get(names) or shape.encoder(names)  # 11
        if proof is not None and proven is not None:
            batch.check(message, proof, proven, encode)
        elif isinstance(claims.mqa, Binding):
            envelope.check(message, claims.mqa, encode)
        else:
            raise Rejection(Reason.PROOF_INVALID, "a batch token without its proof")
        if self._covers:
            self._check_coverage(message, claims)
        index = None if proof is None else proof.place
        return make_verified(message, claims, token.opened.kid, keys.version, received, release, index)

    def learn(self, candidate: Candidate) -> None:
        """Remember what is the same for messages like one that was verified and permitted, by no release."""
        token = candidate.token
        if token.proven is not None:
            self.tokens.keep(token.text, token, token.size)
            return
        reader = reader_of(token.opened.payload, token.claims)
        if reader is not None:
            candidate.shape.learn(token.opened.kid, reader)

    def _believe(
        self, message: Message, token: Token, keys: KeySet, received: float, release: Release | None
    ) -> None:
        """Judge all of a token but what it binds: steps 6 to 10."""
        claims, waived = token.claims, _NOTHING if release is None else release.waive
        key = self.authenticate(message, token, keys, received)  # 6, 7
        if claims.aud not in self._audiences:  # 8
            raise Rejection(Reason.AUDIENCE_MISMATCH, "meant for another audience")
        self._times.check(claims, key, message, received, waived)  # 9
        if not self.issuer(claims).speaks_for(key, claims.sub):  # 10
            raise Rejection(Reason.SUBJECT_MISMATCH, "the key does not speak for this subject")
        if self._user_id is not None:
            self._check_user(message, claims)
        if token.proven is not None and release is None and self._alike:
            token.standing = Standing(keys, received, self._times.ends(claims, key))

    def _check_user(self, message: Message, claims: Claims) -> None:
        """Refuse a subject that the broker's user contradicts, where the broker names one."""
        user = message.properties.get("user-id")
        if user is None:
            return
        expected = user if self._user_id == "subject" else dict(self._user_id or {}).get(user)
        if expected != claims.sub:
            raise Rejection(Reason.SUBJECT_MISMATCH, "the broker's user is another subject")

    def _check_coverage(self, message: Message, claims: Claims) -> None:
        """Refuse a message whose required headers are absent or uncovered."""
        covered = set(claims.mqa.hdr)
        for name in self._require:
            if name in PROTECTED_PROPERTIES:  # always covered; on RabbitMQ a header of that name is another thing
                present = bool(message.property_values(name))
            else:
                present = bool(message.occurrences(name)) and name in covered
            if not present:
                raise Rejection(Reason.COVERAGE_INSUFFICIENT, "a required header is absent or not covered")
        if self._reject_unsigned and set(envelope.application_headers(form_of(message))) - covered:
            raise Rejection(Reason.COVERAGE_INSUFFICIENT, "a header is not covered")


def _issuers(keys: Mapping[str, KeySource | Issuer]) -> dict[str, Issuer]:
    """Return the issuers by name, at least one."""
    if not isinstance(keys, Mapping) or not keys:
        raise ConfigurationError("keys names at least one issuer and its keys")
    for name in keys:
        if not claim_set.is_name(name):
            raise ConfigurationError(f"an issuer is text of 1 to {claim_set.MAX_NAME} characters")
    return {name: found if isinstance(found, Issuer) else Issuer(keys=found) for name, found in keys.items()}


def _refuse_shared_names(issuers: Iterable[str], release: ReleaseAuthorities | None) -> None:
    """Refuse a release authority that has an issuer's name: who signs messages must release none."""
    shared = sorted(set(issuers) & set(release.authorities)) if release is not None else []
    if shared:
        raise ConfigurationError(f"{shared[0]!r} is an issuer and a release authority: give each its own name")


def _audiences(audience: str | Iterable[str]) -> frozenset[str]:
    """Return the accepted audiences, at least one, none a wildcard."""
    found = frozenset([audience] if isinstance(audience, str) else audience)
    if not found:
        raise ConfigurationError("audience names at least one audience")
    for name in found:
        if not claim_set.is_name(name) or "*" in name:
            raise ConfigurationError("an audience is a name of 1 to 256 characters, never a wildcard")
    return found
