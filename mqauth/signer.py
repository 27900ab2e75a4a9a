"""The producer's side: a message in, the same message with a signed token out. Each call makes a new token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypedDict

from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness
from mqauth.errors import (
    Cause,
    ConfigurationError,
    KeyChanged,
    MalformedMessage,
    Unavailable,
    require,
)
from mqauth.wire import (
    base64url,
    batch,
    claims,
    destination,
    envelope,
    jws,
    memo,
    template,
    workload,
)
from mqauth.wire.identity import Identity
from mqauth.wire.keys import ALGORITHMS, MAX_KID, Key, SigningKey, SigningKeySource
from mqauth.wire.message import Form, HeaderNames, Message, form_of, message_of

MAX_LIFETIME: Final = 86_400
DEFAULT_BATCH: Final = 64
"""Most messages under one signature: its check then costs each of them a microsecond."""
MAX_LINGER: Final = 10.0
SPARE: Final = 30
"""Seconds by which an identity outlives each token that it proves; less where it lives for under 3 minutes."""


class Batching(TypedDict):
    """The arguments of a broker wrapper's ``Producer`` that make messages share signatures.

    Args:
        batch: most messages under one signature, 1 to 1,024; 1 for a token each.
        linger: seconds a message may wait for others, 0 to 10.
    """

    batch: int
    linger: float


def check_batching(batch: int, linger: float) -> None:
    """Refuse settings that are out of their limits.

    Args:
        batch: messages under one signature.
        linger: seconds a message may wait for others.

    Raises:
        ConfigurationError: one is.
    """
    require(
        type(batch) is int
        and 1 <= batch <= claims.MAX_BATCH
        and 0 <= linger <= MAX_LINGER,
        f"batch is 1 to {claims.MAX_BATCH}, linger 0 to {MAX_LINGER:.0f} seconds",
    )


@dataclass(
    slots=True, eq=False
)  # not frozen: that would be a tenth of what a message costs
class Prepared:
    """A message that waits for the signature of its batch; messages of one ``group`` may share it.

    Args:
        message: as it will be sent.
        group: its destination and the names of the headers covered. A proof holds hashes of its siblings: one who
            reads another destination must not be able to check a guess by them.
        headers: its properties and covered headers, encoded.
    """

    message: Message
    group: tuple[str, tuple[str, ...]]
    headers: bytes


class _Single(NamedTuple):
    """What the tokens of single messages of one form have in common.

    Args:
        pieces: a token's payload around the values that differ.
        encode: encodes a message's properties and covered headers.
    """

    pieces: template.Pieces
    encode: envelope.Encoder


class _Group(NamedTuple):
    """What batched messages of one form have in common: their ``group`` and the encoder of their headers."""

    group: tuple[str, tuple[str, ...]]
    encode: envelope.Encoder


class Signer:
    """Signs messages as one producer.

    Args:
        key: a private ``Key``, any ``SigningKey``, or a ``SigningKeySource`` that follows rotation, such as
            ``mqauth.ActiveKey``; with ``mqauth.IdentityKey`` or ``WITKey`` tokens have the identity form.
        issuer: ``iss``, whom consumers trust for this key; the trust domain of an identity.
        subject: ``sub``, the producer's name.
        audience: ``aud``, the service or stream the messages are meant for.
        audiences: another audience by canonical destination.
        lifetime: seconds a token lives, 1 to 86,400; consumers accept 3,600 unless told otherwise.
        cover: names of the headers to cover; by default every application header present.
        leave_unsigned: names, or at least 4 characters and a ``*``, in any case, of headers that tracing and
            transport add or change on the way; they are not covered by default.

    Raises:
        ConfigurationError: an argument is out of its limits, or the key cannot sign.
    """

    def __init__(
        self,
        *,
        key: Key | SigningKey | SigningKeySource,
        issuer: str,
        subject: str,
        audience: str,
        audiences: Mapping[str, str] | None = None,
        lifetime: int = 60,
        cover: Iterable[str] | None = None,
        leave_unsigned: Iterable[str] = (),
        clock: Clock = SYSTEM_CLOCK,
        randomness: Randomness = SYSTEM_RANDOMNESS,
    ) -> None:
        _check_names(issuer=issuer, subject=subject, audience=audience)
        require(
            type(lifetime) is int and 1 <= lifetime <= MAX_LIFETIME,
            f"lifetime is 1 to {MAX_LIFETIME} whole seconds",
        )
        require(
            not isinstance(cover, str),
            "cover is a list of names: a text would cover its letters",
        )
        if isinstance(key, SigningKeySource):
            self._key_now: Callable[[], SigningKey] = key.signing_key
        else:
            fixed = jws.LocalSigningKey(key) if isinstance(key, Key) else key
            self._key_now = lambda: fixed
        self._blocks = getattr(key, "blocking", False) is True
        self._is_identity = getattr(key, "is_identity", False) is True
        self._build = workload.build if self._is_identity else claims.build
        self._checked: object = object()  # no key
        self.issuer = issuer
        self.subject = subject
        self.lifetime = lifetime
        self._audience = audience
        self._audiences = dict(audiences or {})
        for at, name in self._audiences.items():
            _check_names(audience=name)
            try:
                destination.parse(at)
            except MalformedMessage as error:
                raise ConfigurationError(f"audiences: {at!r}: {error}") from error
        self._left = HeaderNames("leave_unsigned", leave_unsigned)
        self._cover = None if cover is None else tuple(dict.fromkeys(cover))
        self._clock = clock
        self._randomness = randomness
        self._singles = memo.Memo(self._single)
        self._groups = memo.Memo(self._group)
        with suppress(
            Unavailable
        ):  # a key that is out of reach now may be reachable once there is a message
            self._signing_key()

    @property
    def blocking(self) -> bool:
        """Whether a signature may wait for somebody: an event loop then has it made on a thread.

        Raises:
            ConfigurationError, Unavailable: as ``sign``.
        """
        return self._blocks or getattr(self._key_now(), "blocking", False) is True

    def sign(self, message: Message) -> Message:
        """Return the message with a fresh token in its headers.

        Raises:
            MalformedMessage: the message has a token already, or cannot exist on its broker.
            ConfigurationError: no key may sign now, or it does not speak for the subject.
            Unavailable: ``keys_unavailable``, whoever holds the key cannot be reached.
        """
        return _with_token(message, self._single_token(message))

    def prepare(self, message: Message) -> Prepared:
        """Return a message encoded for a batch, so that its own sender is told what is wrong with it.

        Raises:
            MalformedMessage: the message has a token already, or cannot exist on its broker.
        """
        group, encode = self._groups[_form_of(message)]
        return Prepared(message, group, encode(message))

    def seal(self, prepared: Sequence[Prepared]) -> list[Message]:
        """Return prepared messages, in order, each with its token: one signature for each group.

        A group of more than 1,024 takes a signature for each 1,024 of it. A message that is alone in its group has
        a token of the single form.

        Raises:
            MalformedMessage: a token would be over its size.
            ConfigurationError: no key may sign now, or it does not speak for the subject.
            Unavailable: ``keys_unavailable``, whoever holds the key cannot be reached.
        """
        sealed = []
        for each, token in zip(prepared, self.tokens(prepared), strict=True):
            if isinstance(token, MalformedMessage):
                raise token
            sealed.append(_with_token(each.message, token))
        return sealed

    def tokens(self, prepared: Sequence[Prepared]) -> list[str | MalformedMessage]:
        """Return the token header of each prepared message, in order, or why it can have none.

        Raises:
            ConfigurationError, Unavailable: as ``seal``; none has a token then.
        """
        groups: dict[object, list[int]] = {}
        for number, each in enumerate(prepared):
            groups.setdefault(each.group, []).append(number)
        tokens: list[Any] = [None] * len(prepared)
        for places in groups.values():
            for at in range(0, len(places), claims.MAX_BATCH):
                part = places[at : at + claims.MAX_BATCH]
                for number, token in zip(
                    part, self._tokens([prepared[number] for number in part]), strict=True
                ):
                    tokens[number] = token
        return tokens

    def sign_many(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages, in order, each with a token, as ``prepare`` and ``seal`` make it.

        Raises:
            MalformedMessage: one of them cannot be signed; none is.
            ConfigurationError, Unavailable: as ``sign``.
        """
        return self.seal([self.prepare(message) for message in messages])

    def _single(self, form: Form) -> _Single:
        names = self._names(form)
        binding = claims.Binding(dst=form[0], bod=None, key=None, hdr=names, hds="")
        sample = self._claims(self._audiences.get(form[0], self._audience), "", binding)
        return _Single(
            template.pieces_of(sample, binding, self._build),
            envelope.encoder(form, names),
        )

    def _group(self, form: Form) -> _Group:
        # sorted, so that messages whose headers come in another order share a signature
        names = tuple(sorted(self._names(form)))
        return _Group((form[0], names), envelope.encoder(form, names))

    def _names(self, form: Form) -> tuple[str, ...]:
        """Return the names that are covered in messages of a form.

        Raises:
            MalformedMessage: the destination is not canonical, a token is among the names, or two of them differ
                in case only.
        """
        destination.parse(form[0])
        envelope.refuse_token(form[1])
        names = (
            self._left.without(envelope.application_headers(form))
            if self._cover is None
            else self._cover
        )
        envelope.refuse_case_twins(form, names)
        return names

    def _single_token(self, message: Message) -> str:
        single, now = self._singles[_form_of(message)], int(self._clock.now())
        body, key = message.body, message.key
        digests = (
            None if body is None else base64url.digest(body),
            None if key is None else base64url.digest(key),
            base64url.digest(single.encode(message)),
        )
        times = (b"%d" % now, b"%d" % (now + self.lifetime))
        return self._token(template.fill(single.pieces, *times, self._jti(), digests))

    def _tokens(self, group: list[Prepared]) -> Sequence[str | MalformedMessage]:
        """Return the tokens of one group; where they are too large with their proofs, each has its own."""
        made = (
            self._batch_tokens(group)
            if len(group) > 1
            else [self._single_token(group[0].message)]
        )
        if max(map(len, made)) <= jws.MAX_TOKEN:
            return made
        if len(group) > 1:
            return [token for each in group for token in self._tokens([each])]
        return [
            MalformedMessage(
                f"the token is over {jws.MAX_TOKEN} bytes: cover fewer headers"
            )
        ]

    def _batch_tokens(self, group: list[Prepared]) -> list[str]:
        """Return the token of a batch, each time with another proof."""
        destination, names = group[0].group
        audience = self._audiences.get(destination, self._audience)
        leaves = [batch.leaf_of(member.message, member.headers) for member in group]
        tree = batch.Tree([batch.leaf_hash(leaf) for leaf in leaves])
        mqa = claims.Batch(
            root=base64url.encode(tree.root).decode("ascii"), size=len(group), hdr=names
        )
        token = self._token(
            self._build(self._claims(audience, self._jti().decode("ascii"), mqa))
        )
        return [
            token + batch.proof_text(index, batch.shorts_of(leaf), path)
            for index, (leaf, path) in enumerate(zip(leaves, tree.paths(), strict=True))
        ]

    def _token(self, payload: bytes) -> str:
        """Return a token; its header and its signature are of one key, also while keys rotate."""
        for _ in range(3):
            with suppress(KeyChanged):
                if self._is_identity:
                    return workload.compact(payload, self._workload_key())
                return jws.compact(payload, self._signing_key())
        raise Unavailable(Cause.KEYS_UNAVAILABLE, "the key changes faster than it signs")

    def _workload_key(self) -> workload.WorkloadKey:
        """Return the key of the identity form, whose identity outlives a token that is made now."""
        key = self._signing_key()
        if not isinstance(key, workload.WorkloadKey):
            raise ConfigurationError("the key is no identity")
        if key.identity.expires < self._clock.now() + self.lifetime + _spare(
            key.identity
        ):
            whose = f"{key.host}: " if key.host else ""
            raise Unavailable(
                Cause.KEYS_UNAVAILABLE,
                f"{whose}the identity ends too soon for another token",
            )
        return key

    def _signing_key(self) -> SigningKey:
        """Return the key that signs now; one that was not seen before must speak for the subject."""
        key = self._key_now()
        if key is not self._checked:
            # what cannot sign, what signs tokens nobody could accept, and a key that names other subjects only
            signs = callable(getattr(key, "sign", None))
            require(
                signs, "the key cannot sign: for a keystore folder use mqauth.ActiveKey"
            )
            known = getattr(key, "algorithm", None) in ALGORITHMS
            require(known, f"the key's algorithm is none of {', '.join(ALGORITHMS)}")
            kid = claims.is_name(getattr(key, "kid", None), 1, MAX_KID)
            require(kid, f"the key's kid is text of 1 to {MAX_KID} characters")
            subjects = getattr(key, "subjects", None)
            named = ", ".join(sorted(subjects or ()))
            others = (
                f"the key {key.kid} does not speak for {self.subject}, but for {named}"
            )
            require(subjects is None or self.subject in subjects, others)
            require(
                self._is_identity == isinstance(key, workload.WorkloadKey)
                and (
                    not isinstance(key, workload.WorkloadKey)
                    or key.identity.trust_domain == self.issuer
                ),
                "the issuer of an identity is its trust domain, and its key comes as IdentityKey or WITKey",
            )
            if isinstance(key, workload.WorkloadKey) and key.identity.issued is not None:
                # It is renewed at half its life, and has to prove tokens until then.
                life, spare = (
                    key.identity.expires - key.identity.issued,
                    _spare(key.identity),
                )
                require(
                    2 * (self.lifetime + spare) <= life,
                    f"lifetime is {self.lifetime} s; with {spare} s to spare it must be at most half of the"
                    f" identity's {life} s",
                )
            self._checked = key
        return key

    def _jti(self) -> bytes:
        return base64url.encode(self._randomness(16))

    def _claims(
        self, audience: str, jti: str, mqa: claims.Binding | claims.Batch
    ) -> claims.Claims:
        """Return the claims of one token, valid from now."""
        now = int(self._clock.now())
        return claims.Claims(
            iss=self.issuer,
            sub=self.subject,
            aud=audience,
            iat=now,
            exp=now + self.lifetime,
            jti=jti,
            mqa=mqa,
        )


def _form_of(message: Message) -> Form:
    """Return the form of a message that its broker can carry."""
    if message.malformed is not None:
        raise MalformedMessage(message.malformed)
    return form_of(message)


def _with_token(message: Message, token: str) -> Message:
    """Return the message with its token; ``dataclasses.replace`` takes six times as long."""
    return message_of(
        message.destination,
        message.body,
        message.key,
        message.properties,
        envelope.attach(message, token),
        message.origin,
        message.native,
        message.malformed,
    )


def _spare(identity: Identity) -> int:
    """Return the seconds by which an identity outlives each token; a sixth of its life, if that is less."""
    return (
        SPARE
        if identity.issued is None
        else min(SPARE, (identity.expires - identity.issued) // 6)
    )


def _check_names(**names: object) -> None:
    for name, value in names.items():
        require(
            claims.is_name(value), f"{name} is text of 1 to {claims.MAX_NAME} characters"
        )
