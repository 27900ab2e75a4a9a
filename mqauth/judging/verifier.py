"""Steps (0) to (11) of a verdict: message, keys and time in, a ``Verified`` or a rejection out.

Everything here is pure; ``mqauth.judging.judge`` has the theory of operation, the order of all steps, and the
plug-ins that steps (12) and (13) ask. What is remembered of earlier messages is only how to take a step, never
its outcome, with one exception: steps (6) and (8) to (10) ask nothing that differs between the messages of one
batch token. So their outcome stands for its siblings, under the same key set object and within the times it
holds for (``Validity``). The signature of a remembered token is not checked again under the same key object.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal, NamedTuple

from mqauth.errors import ConfigurationError, Reason, Rejection, require
from mqauth.judging.identities import (
    REMEMBERED,
    Identities,
    TrustDomain,
    check_life,
    ends_of,
)
from mqauth.judging.rollout import AcceptAs, WithoutEvidence
from mqauth.judging.token import (
    CAPACITY,
    NOTHING,
    At,
    Shape,
    Times,
    Token,
    Validity,
    is_revoked,
)
from mqauth.judging.verified import Verified, make_verified
from mqauth.letters.authorities import ReleaseAuthorities
from mqauth.letters.release import Release
from mqauth.wire import batch, envelope, jwk, jws, memo
from mqauth.wire.claims import MAX_NAME, Binding, Claims, is_name, parse
from mqauth.wire.identity import is_trust_domain, is_wit
from mqauth.wire.keys import Key, KeySet, KeySource
from mqauth.wire.message import (
    NEW_TUPLE,
    PROTECTED_PROPERTIES,
    Form,
    HeaderNames,
    Message,
    form_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """One trusted issuer: where its keys come from and for whom they may speak.

    Args:
        keys: the source of its keys.
        subjects: the subjects by kid, or by ``"*"`` for keys whose JWK does not name any.
        vouches: the issuer is an authority whose keys sign for all its subjects.
        until: by which day it is to be taken out, for a migration to identities: loud, and no verdict changes.

    Raises:
        ConfigurationError: both ``subjects`` and ``vouches`` are given, or a text in place of a set.
    """

    keys: KeySource
    subjects: Mapping[str, frozenset[str]] | None = None
    vouches: bool = False
    until: date | None = None

    def __post_init__(self) -> None:
        require(
            not (self.vouches and self.subjects),
            "an issuer either vouches for all or pins subjects",
        )
        require(
            not any(isinstance(pinned, str) for pinned in (self.subjects or {}).values()),
            "pinned subjects are a set: a text would admit its substrings",
        )
        jwk.check_source(self.keys)

    def subjects_of(self, key: Key) -> frozenset[str]:
        """Return the subjects that a key is known to speak for, as far as they are named."""
        pinned = self.subjects or {}
        named = (key.subjects or frozenset()) | pinned.get(key.kid, frozenset())
        return named or pinned.get("*", frozenset())

    def speaks_for(self, key: Key, subject: str) -> bool:
        """Tell whether a key may sign as a subject; it may not unless the issuer, a pin or the key says so."""
        pinned = (self.subjects or {}).get(key.kid)
        if pinned is not None and subject not in pinned:
            return False
        if key.subjects is not None:
            return subject in key.subjects
        return (
            self.vouches
            or pinned is not None
            or subject in (self.subjects or {}).get("*", frozenset())
        )


class Verifier:
    """Judges tokens by steps (0) to (11).

    Args:
        keys: a ``KeySource``, or an ``Issuer`` that says more, by the name of the issuer; a ``TrustDomain`` by the
            name of the trust domain. Without one the identity form is ``token_type``.
        audience: the audience, or audiences, that this consumer accepts.
        max_lifetime: longest ``exp - iat`` accepted, seconds.
        leeway: seconds of clock difference allowed, at most 60.
        at: whether times are judged at ``"consume"`` or, on the broker's evidence, at ``"append"``.
        max_queue_age: seconds a message may have waited; required with ``at="append"``.
        append_evidence: ``"interceptor"`` if RabbitMQ itself overwrites ``timestamp_in_ms``; a consumer has the
            broker prove it at its start.
        unsafe_append_evidence: whether to believe ``append_evidence`` without that proof.
        without_evidence: messages that can never have the broker's evidence, and are dead-lettered for it.
        backlog: ``"expires"`` if messages that wait for less than a day may be rejected for it: no warning.
        require_headers: names that must be present and covered.
        unsigned_headers: whether to ``"hide"`` headers that are not covered, or to ``"reject"`` the message.
        allow_unsigned_headers: names, or at least 4 characters and a ``*``, in any case, of headers that tracing
            and transport add: hidden, and no reason to reject.
        accept_as: for which other destinations messages that arrive somewhere may be signed.
        user_id: compare AMQP ``user_id`` with ``sub``: ``"subject"`` for the same name, or a table of user to
            subject.
        release: who may release dead letters; without it every release is ``release_invalid``.
        identities: how many WITs of trust domains are remembered.

    Raises:
        ConfigurationError: there is no issuer or no audience, an audience is a wildcard, a release authority has
            the name of an issuer, or settings contradict each other.
    """

    def __init__(
        self,
        *,
        keys: Mapping[str, KeySource | Issuer | TrustDomain],
        audience: str | Iterable[str],
        max_lifetime: int = 3600,
        leeway: int = 5,
        at: At = "consume",
        max_queue_age: int | None = None,
        append_evidence: Literal["interceptor"] | None = None,
        unsafe_append_evidence: bool = False,
        without_evidence: Iterable[WithoutEvidence] = (),
        backlog: Literal["expires"] | None = None,
        require_headers: Iterable[str] = (),
        unsigned_headers: Literal["hide", "reject"] = "hide",
        allow_unsigned_headers: Iterable[str] = (),
        accept_as: Iterable[AcceptAs] = (),
        user_id: Literal["subject"] | Mapping[str, str] | None = None,
        release: ReleaseAuthorities | None = None,
        identities: int = REMEMBERED,
    ) -> None:
        self.issuers = _issuers(keys)
        trusted = any(isinstance(issuer, TrustDomain) for issuer in self.issuers.values())
        self.identities = Identities(identities) if trusted else None
        # Whoever signs messages must not release them.
        for shared in sorted(
            set(self.issuers) & set(() if release is None else release.authorities)
        ):
            raise ConfigurationError(
                f"{shared!r} is an issuer and a release authority: give each its own name"
            )
        self.audiences = frozenset([audience] if isinstance(audience, str) else audience)
        require(self.audiences, "audience names at least one audience")
        require(
            all(is_name(name) and "*" not in name for name in self.audiences),
            "an audience is a name of 1 to 256 characters, never a wildcard",
        )
        self.times = Times(
            max_lifetime=max_lifetime,
            leeway=leeway,
            at=at,
            max_queue_age=max_queue_age,
            append_evidence=append_evidence,
            unsafe_append_evidence=unsafe_append_evidence,
            without_evidence=tuple(without_evidence),
            backlog=backlog,
        )
        require(
            unsigned_headers in ("hide", "reject"),
            'unsigned_headers is "hide" or "reject"',
        )
        users = user_id in (None, "subject") or isinstance(user_id, Mapping)
        require(users, 'user_id is "subject" or a table of user to subject')
        require(
            not isinstance(require_headers, str), "require_headers is a list of names"
        )
        self.required = tuple(require_headers)
        self.allowed = HeaderNames(
            "allow_unsigned_headers", allow_unsigned_headers, self.required
        )
        aliases = list(accept_as)
        self.aliases = {alias.at: alias for alias in aliases}
        require(
            len(self.aliases) == len(aliases), "accept_as: one entry for each destination"
        )
        self._reject_unsigned = unsigned_headers == "reject"
        self._covers = bool(self.required) or self._reject_unsigned
        self.user_id = user_id
        self.tokens = memo.Memo[bytes, Token](capacity=CAPACITY)
        self.shapes = memo.Memo[Form, Shape](
            lambda form: Shape(form, self.shapes.charge), capacity=CAPACITY
        )
        # append times and AMQP users differ between the messages of a batch, and steps (9) and (10) with them
        self._alike = at == "consume" and user_id is None
        self.release = release
        self.ends = {
            name: issuer.until
            for name, issuer in self.issuers.items()
            if issuer.until is not None
        }

    @property
    def settings(self) -> str:
        """A text that changes with what is trusted and how it is judged."""
        return repr(
            (
                sorted(
                    (
                        name,
                        issuer.vouches,
                        sorted(
                            (kid, sorted(who))
                            for kid, who in (issuer.subjects or {}).items()
                        ),
                        getattr(issuer, "max_identity_lifetime", 0),
                    )
                    for name, issuer in self.issuers.items()
                ),
                sorted(self.audiences),
                self.times,
                self.required,
                self._reject_unsigned,
                self.user_id,
                sorted(self.allowed.names),
                sorted(map(repr, self.aliases.values())),
            )
        )

    @property
    def retention(self) -> int:
        """Seconds after its ``exp`` for which a copy of a message might still be accepted."""
        return self.times.leeway + (self.times.max_queue_age or 0)

    def trusts(self) -> dict[str, str]:
        """Return whom and what this verifier believes, as texts for the line that a consumer logs at its start."""
        return {
            "issuers": ", ".join(self.issuers),
            "audience": ", ".join(sorted(self.audiences)),
            "unsigned_headers": "rejected" if self._reject_unsigned else "hidden",
        }

    def open(self, message: Message) -> Candidate:
        """Take the token of a message apart: steps (0) to (4).

        Raises:
            Rejection: the reason of the first step that fails.
        """
        # (0)
        if message.malformed is not None:
            raise Rejection(Reason.MESSAGE_MALFORMED, message.malformed)
        # (1): where the token is follows from the names alone
        shape = self.shapes[form_of(message)]
        if shape.fault is not None:
            raise Rejection(*shape.fault)
        text = envelope.token_of_value(
            message.headers[shape.place][1], on_kafka=shape.on_kafka
        )
        text, batched, behind = text.partition(batch.SEPARATOR)
        token, learnt, proof = self.tokens.get(text) if batched else None, True, None
        if token is None:
            if batched and self.identities is not None and is_wit(text):
                token, proof, learnt = self.identities.open(
                    text, behind, self.tokens, shape.readers
                )
                return NEW_TUPLE(Candidate, (token, proof, shape, learnt))
            # (2), (3)
            opened = jws.take_apart(text)
            # (4): a reader compares bytes with a payload that was parsed before; what it does not know is parsed
            reader = shape.readers.get((opened.kid, len(opened.payload)))
            read = None if reader is None else reader.read(opened.payload)
            token, learnt = (
                Token(text, opened, read or parse(opened.payload)),
                read is not None,
            )
        if batched or token.proven is not None:
            proof = batch.proof_of(behind if batched else None, token.claims)
        return NEW_TUPLE(Candidate, (token, proof, shape, learnt))

    def issuer(self, token: Token) -> Issuer | TrustDomain:
        """Return the configured issuer or trust domain of a token: step (5).

        Raises:
            Rejection: ``issuer_untrusted``.
        """
        issuer = self.issuers.get(token.claims.iss)
        # each form has its own: a token of the other one is nobody's
        if issuer is None or (type(issuer) is TrustDomain) is (token.wit is None):
            raise Rejection(Reason.ISSUER_UNTRUSTED, "no such issuer is configured")
        return issuer

    def authenticate(
        self, message: Message, token: Token, keys: KeySet, received: float
    ) -> Key:
        """Return the key that signed a token: steps (6) and (7).

        Args:
            message: as the broker delivered it.
            token: of its candidate.
            keys: the key set of its issuer.
            received: UTC seconds at which this process first received the delivery.

        Raises:
            Rejection: ``key_unknown``, ``key_revoked``, ``algorithm_forbidden`` or ``signature_invalid``.
        """
        # (6)
        key = keys.by_kid.get(token.opened.kid)
        if key is None:
            raise Rejection(Reason.KEY_UNKNOWN, "the issuer has no such key")
        if key.revocation is not None and is_revoked(
            key, self.times.evidence(message), received
        ):
            raise Rejection(Reason.KEY_REVOKED, "the key is revoked")
        if token.wit is not None and self.identities is not None:
            self.identities.authenticate(
                token, token.wit, keys, key, self.times.evidence(message)
            )
        # (6) its algorithm, (7) the signature; under another key object it is checked again
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
        """Judge an opened token against its message: steps (6) to (11).

        Args:
            message: as the broker delivered it.
            candidate: what ``open`` returned for this message.
            keys: the key set of the candidate's issuer.
            received: UTC seconds at which this process first received the delivery.
            release: verified for this message. The reasons that it waives are passed over, and no others.

        Raises:
            Rejection: the reason of the first step that fails.
            Unavailable: ``append_time_unavailable``.
        """
        token, proof = candidate.token, candidate.proof
        claims, proven = token.claims, token.proven
        stands = token.validity
        if (
            stands is None
            or stands.keys is not keys
            or not stands.since <= received < stands.until
            or release is not None
        ):
            self._believe(message, token, keys, received, release)
        # (11)
        if message.destination in self.aliases:
            message = self.aliases[message.destination].signed(message, claims, proof)
        shape, names = candidate.shape, claims.mqa.hdr
        encode = shape.encoders.get(names) or shape.encoder(names)
        if proof is not None and proven is not None:
            batch.check(message, proof, proven, encode)
        elif isinstance(claims.mqa, Binding):
            envelope.check(message, claims.mqa, encode)
        else:
            raise Rejection(Reason.PROOF_INVALID, "a batch token without its proof")
        if self._covers:
            self._check_coverage(message, claims)
        position = None if proof is None else proof.place
        who = None if token.wit is None else token.wit.identity
        return make_verified(
            message,
            claims,
            token.opened.kid,
            keys.version,
            received,
            release,
            position,
            who,
        )

    def learn(self, candidate: Candidate) -> None:
        """Remember what messages like this one have in common; it was verified and permitted, by no release."""
        token = candidate.token
        if token.proven is not None:
            self.tokens.keep(token.text, token, token.size)
            return
        candidate.shape.learn(token)

    def _believe(
        self,
        message: Message,
        token: Token,
        keys: KeySet,
        received: float,
        release: Release | None,
    ) -> None:
        """Take steps (6) to (10): all of a token but the message that it binds."""
        claims, waived = token.claims, NOTHING if release is None else release.waive
        # (6), (7)
        key = self.authenticate(message, token, keys, received)
        # (8)
        if claims.aud not in self.audiences:
            raise Rejection(Reason.AUDIENCE_MISMATCH, "meant for another audience")
        # (9)
        issuer, retires, wit = self.issuer(token), key.expires, token.wit
        if wit is not None and isinstance(issuer, TrustDomain):
            check_life(
                wit,
                key,
                issuer.max_identity_lifetime,
                self.times,
                message,
                claims.iat,
                received,
                waived,
            )
            retires = (
                None  # the proof is of the workload's key, which ends with its identity
            )
        self.times.check(claims, retires, message, received, waived)
        # (10)
        if not issuer.speaks_for(key, claims.sub):
            raise Rejection(
                Reason.SUBJECT_MISMATCH, "the key does not speak for this subject"
            )
        user = None if self.user_id is None else message.properties.get("user-id")
        if user is not None:
            expected = (
                user if self.user_id == "subject" else dict(self.user_id or {}).get(user)
            )
            if expected != claims.sub:
                raise Rejection(
                    Reason.SUBJECT_MISMATCH, "the broker's user is another subject"
                )
        if wit is not None and self.identities is not None and release is None:
            self.identities.keep(wit, key)
        if token.proven is not None and release is None and self._alike:
            until = self.times.ends(claims, key)
            until = until if wit is None else min(until, ends_of(wit, key, self.times))
            token.validity = Validity(keys, received, until)

    def uncovered(self, message: Message, covered: Collection[str]) -> list[str]:
        """Return the application's headers that no token covers, but those that may stand without."""
        return [
            name
            for name in self.allowed.without(
                envelope.application_headers(form_of(message))
            )
            if name not in covered
        ]

    def _check_coverage(self, message: Message, claims: Claims) -> None:
        """Refuse a message that lacks a required header, or has one that is not covered."""
        covered = set(claims.mqa.hdr)
        for name in self.required:
            # a protected property is always covered; on RabbitMQ a header of its name is something else
            if name in PROTECTED_PROPERTIES:
                present = bool(message.property_values(name))
            else:
                present = bool(message.occurrences(name)) and name in covered
            if not present:
                raise Rejection(
                    Reason.COVERAGE_INSUFFICIENT,
                    "a required header is absent or not covered",
                )
        if self._reject_unsigned and self.uncovered(message, covered):
            raise Rejection(Reason.COVERAGE_INSUFFICIENT, "a header is not covered")


def _issuers(
    keys: Mapping[str, KeySource | Issuer | TrustDomain],
) -> dict[str, Issuer | TrustDomain]:
    require(
        isinstance(keys, Mapping) and keys, "keys names at least one issuer and its keys"
    )
    require(all(map(is_name, keys)), f"an issuer is text of 1 to {MAX_NAME} characters")
    issuers = {
        name: issuer if isinstance(issuer, Issuer | TrustDomain) else Issuer(keys=issuer)
        for name, issuer in keys.items()
    }
    domains = [
        name for name, issuer in issuers.items() if isinstance(issuer, TrustDomain)
    ]
    require(
        all(map(is_trust_domain, domains)),
        "a trust domain is wimse:// or spiffe:// and a name",
    )
    # An issuer that lies in a trust domain would pass for the authority.
    for name in issuers.keys() - domains:
        inside = any(f"{name}/".startswith(f"{domain}/") for domain in domains)
        require(
            not inside, f"the issuer {name!r} lies in a trust domain that is configured"
        )
    return issuers


class Candidate(NamedTuple):
    """A token whose claims are parsed and not yet believed: the outcome of steps 1 to 4.

    Args:
        token: taken apart; one of a batch may be remembered.
        proof: in a batch, what came behind the token.
        shape: of its message.
        learnt: there is nothing to remember of the token that is not remembered already.
    """

    token: Token
    proof: batch.Proof | None
    shape: Shape
    learnt: bool
