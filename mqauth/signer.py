"""The producer's side: a message in, the same message with a signed token out. Each call seals anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness
from mqauth.errors import Cause, ConfigurationError, KeyChanged, MalformedMessage, Unavailable
from mqauth.wire import base64url, batch, claims, destination, envelope, jws, template
from mqauth.wire.claims import MAX_BATCH, Batch, Binding, Claims
from mqauth.wire.keys import ALGORITHMS, MAX_KID, Key, SigningKey, SigningKeySource
from mqauth.wire.merkle import Tree
from mqauth.wire.message import Form, HeaderPair, Message, form_of, message_of
from mqauth.wire.template import Template

MAX_LIFETIME: Final = 86_400
_JTI_BYTES: Final = 16
_ATTEMPTS: Final = 3
_REMEMBERED: Final = 1024
_TEN_DIGITS: Final = 10**9


@dataclass(slots=True, eq=False)  # not frozen: that would be a tenth of what a message costs
class Prepared:
    """A message that is hashed and waits for the signature of its batch; messages of one ``group`` may share it.

    Args:
        message: as it will be sent.
        group: its audience and the names of the headers covered.
        leaf: the hash of what is bound of it.
        shorts: the first bytes of each part's digest.
    """

    message: Message
    group: tuple[str, tuple[str, ...]]
    leaf: bytes
    shorts: bytes


class _Kind(NamedTuple):
    """What is the same for all messages of a form.

    Args:
        group: as of ``Prepared``.
        headers: returns the bytes that stand for a message's properties and covered headers.
    """

    group: tuple[str, tuple[str, ...]]
    headers: Callable[[Message], bytes]


class _Like(NamedTuple):
    """What the tokens of a form have in common, and what encodes a message's properties and covered headers."""

    template: Template
    headers: Callable[[Message], bytes]


class Signer:
    """Signs messages as one producer.

    Args:
        key: a private ``Key``, any ``SigningKey``, or a ``SigningKeySource`` that follows rotation, such as
            ``mqauth.ActiveKey``.
        issuer: ``iss``, whom consumers trust for this key.
        subject: ``sub``, the producer's name.
        audience: ``aud``, the service or stream the messages are meant for.
        audiences: another audience by canonical destination.
        lifetime: seconds a token lives, 1 to 86,400; consumers accept 3,600 unless told otherwise.
        cover: names of the headers to cover; by default every application header present.

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
        clock: Clock = SYSTEM_CLOCK,
        randomness: Randomness = SYSTEM_RANDOMNESS,
    ) -> None:
        _check_names(issuer=issuer, subject=subject, audience=audience)
        if type(lifetime) is not int or not 1 <= lifetime <= MAX_LIFETIME:
            raise ConfigurationError(f"lifetime is 1 to {MAX_LIFETIME} whole seconds")
        if isinstance(cover, str):
            raise ConfigurationError("cover is a list of names: a text would cover its letters")
        self._source = _source(key)
        self._checked: SigningKey | None = None
        self.issuer = issuer
        self.subject = subject
        self.lifetime = lifetime
        self._audience = audience
        self._audiences = _check_audiences(audiences or {})
        self._cover = None if cover is None else tuple(cover)
        self._clock = clock
        self._randomness = randomness
        self._kinds: dict[Form, _Kind] = {}
        self._likes: dict[Form, _Like] = {}
        with suppress(Unavailable):  # it may come up later
            self._signing_key()

    def sign(self, message: Message) -> Message:
        """Return the message with a fresh token in its headers.

        Raises:
            MalformedMessage: the message has a token already, or cannot exist on its broker.
            ConfigurationError: no key may sign now, or it does not speak for the subject.
            Unavailable: ``keys_unavailable``, whoever holds the key cannot be reached.
        """
        _check_message(message)
        return self._sealed(message)

    def prepare(self, message: Message) -> Prepared:
        """Return a message hashed for a batch, so that what is wrong with it is told to its own sender.

        Raises:
            MalformedMessage: the message has a token already, or cannot exist on its broker.
        """
        _check_message(message)
        form = form_of(message)
        kind = self._kinds.get(form) or self._kind(form, message)
        leaf = batch.leaf_with(message, kind.headers(message))
        return Prepared(message, kind.group, leaf.hash, leaf.shorts)

    def _kind(self, form: Form, message: Message) -> _Kind:
        """Return what is the same for all messages of a form, and remember it.

        Raises:
            MalformedMessage: a token is among its headers, or two names differ in case only.
        """
        names = _covered(form[1], destination.is_kafka(message.destination), self._cover)
        group = (self._audiences.get(message.destination, self._audience), names)
        if len(self._kinds) >= _REMEMBERED:
            self._kinds.clear()
        kind = self._kinds[form] = _Kind(group, envelope.headers_inputs(message, names))
        return kind

    def seal(self, prepared: Sequence[Prepared]) -> list[Message]:
        """Return prepared messages, in order, each with its token: one signature for each group.

        A group of more than 1,024 takes a signature for each 1,024 of it; one message alone has a token of the
        single form.

        Raises:
            MalformedMessage: a token would be over its size.
            ConfigurationError: no key may sign now, or it does not speak for the subject.
            Unavailable: ``keys_unavailable``, whoever holds the key cannot be reached.
        """
        sealed = []
        for found, token in zip(prepared, self.tokens(prepared), strict=True):
            if isinstance(token, MalformedMessage):
                raise token
            sealed.append(_with_headers(found.message, envelope.attach(found.message, token)))
        return sealed

    def tokens(self, prepared: Sequence[Prepared]) -> list[str | MalformedMessage]:
        """Return the token header of each prepared message, in order, or why its group can have none.

        Raises:
            ConfigurationError, Unavailable: as ``seal``; none has a token then.
        """
        groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        for place, found in enumerate(prepared):
            groups.setdefault(found.group, []).append(place)
        found_tokens: dict[int, str | MalformedMessage] = {}
        for places in groups.values():
            for at in range(0, len(places), MAX_BATCH):
                part = places[at : at + MAX_BATCH]
                found_tokens |= zip(part, self._group_tokens([prepared[place] for place in part]), strict=True)
        return [found_tokens[place] for place in range(len(prepared))]

    def sign_many(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages, in order, each with a token, as ``prepare`` and ``seal`` make it.

        Raises:
            MalformedMessage: one of them cannot be signed; none is.
            ConfigurationError, Unavailable: as ``sign``.
        """
        return self.seal([self.prepare(message) for message in messages])

    def _sealed(self, message: Message) -> Message:
        """Return the message with a token of its own."""
        return _with_headers(message, envelope.attach(message, self._single(message)))

    def _single(self, message: Message) -> str:
        """Return a token for one message."""
        form, now = form_of(message), int(self._clock.now())
        like = self._likes.get(form)
        if like is None or not _TEN_DIGITS <= now < now + self.lifetime < 10 * _TEN_DIGITS:
            return self._token(self._first(form, message))
        body, key = message.body, message.key
        digests = (
            None if body is None else base64url.digest(body),
            None if key is None else base64url.digest(key),
            base64url.digest(like.headers(message)),
        )
        times = (b"%d" % now, b"%d" % (now + self.lifetime))
        return self._token(template.fill(like.template, *times, self._jti(), digests))

    def _first(self, form: Form, message: Message) -> bytes:
        """Return the payload of a message's token, and remember what the next ones of its form have in common."""
        mqa = envelope.bind(message, self._cover)
        found = self._claims(self._audience_of(message), mqa)
        payload = claims.build(found)
        like = template.template_of(payload, found)
        if like is not None:
            if len(self._likes) >= _REMEMBERED:
                self._likes.clear()
            self._likes[form] = _Like(like, envelope.headers_inputs(message, mqa.hdr))
        return payload

    def _group_tokens(self, group: list[Prepared]) -> Sequence[str | MalformedMessage]:
        """Return the token headers of one group under one signature, each of a size that can be sent."""
        found = [self._single(group[0].message)] if len(group) == 1 else self._proven(group)
        if max(map(len, found)) > jws.MAX_TOKEN:
            return [MalformedMessage(f"the token is over {jws.MAX_TOKEN} bytes: cover fewer headers")] * len(group)
        return found

    def _proven(self, group: list[Prepared]) -> list[str]:
        """Return the token of a batch, each time with another proof."""
        audience, names = group[0].group
        tree = Tree([found.leaf for found in group])
        mqa = Batch(root=base64url.encode(tree.root).decode("ascii"), size=len(group), hdr=names)
        token = self._token(claims.build(self._claims(audience, mqa)))
        return [
            token + batch.proof_text(index, found.shorts, path)
            for index, (found, path) in enumerate(zip(group, tree.paths(), strict=True))
        ]

    def _audience_of(self, message: Message) -> str:
        """Return the audience a message is meant for."""
        return self._audiences.get(message.destination, self._audience)

    def _token(self, payload: bytes) -> str:
        """Return the token, made by one key from head to signature."""
        for _ in range(_ATTEMPTS):
            with suppress(KeyChanged):
                return jws.compact(payload, self._signing_key())
        raise Unavailable(Cause.KEYS_UNAVAILABLE, "the key changes faster than it signs")

    def _signing_key(self) -> SigningKey:
        """Return the key that signs now; one not seen before must speak for the subject."""
        key = self._source.signing_key()
        if key is not self._checked:
            _check_key(key, self.subject)
            self._checked = key
        return key

    def _jti(self) -> bytes:
        """Return an id nobody else has."""
        return base64url.encode(self._randomness(_JTI_BYTES))

    def _claims(self, audience: str, mqa: Binding | Batch) -> Claims:
        """Return the claims of one token, valid from now."""
        now = int(self._clock.now())
        return Claims(
            iss=self.issuer,
            sub=self.subject,
            aud=audience,
            iat=now,
            exp=now + self.lifetime,
            jti=self._jti().decode("ascii"),
            mqa=mqa,
        )


def _check_message(message: Message) -> None:
    """Refuse what cannot exist on its broker."""
    if message.malformed is not None:
        raise MalformedMessage(message.malformed)
    destination.check(message.destination)


@lru_cache(maxsize=1024)
def _covered(present: tuple[str, ...], on_kafka: bool, cover: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the names a batch covers, sorted; what depends on names alone is looked at once for each set of them.

    Raises:
        MalformedMessage: a token is among them, or two differ in case only.
    """
    place = destination.kafka("names") if on_kafka else destination.rabbitmq("", "names")
    message = Message(destination=place, body=None, headers=tuple((name, None) for name in present))
    envelope.refuse_token(message)
    names = tuple(sorted(set(envelope.application_headers(message) if cover is None else cover)))
    envelope.refuse_case_twins(message, names)
    return names


def _with_headers(message: Message, headers: tuple[HeaderPair, ...]) -> Message:
    """Return the message with other headers; ``dataclasses.replace`` takes six times as long."""
    return message_of(
        message.destination, message.body, message.key, message.properties, headers, message.origin,
        message.native, message.malformed,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Fixed:
    """The source of one key that never changes."""

    key: SigningKey

    def signing_key(self) -> SigningKey:
        """Return the key."""
        return self.key


def _source(key: Key | SigningKey | SigningKeySource) -> SigningKeySource:
    """Return any of them as a source."""
    if isinstance(key, Key):
        return _Fixed(jws.LocalSigningKey(key))
    return key if isinstance(key, SigningKeySource) else _Fixed(key)


def _check_key(key: SigningKey, subject: str) -> None:
    """Refuse what cannot sign, whose tokens nobody could accept, and a key that names other subjects only."""
    if not callable(getattr(key, "sign", None)):
        raise ConfigurationError("the key cannot sign: for a keystore folder use mqauth.ActiveKey")
    if getattr(key, "algorithm", None) not in ALGORITHMS:
        raise ConfigurationError(f"the key's algorithm is none of {', '.join(ALGORITHMS)}")
    if not claims.is_name(getattr(key, "kid", None), 1, MAX_KID):
        raise ConfigurationError(f"the key's kid is text of 1 to {MAX_KID} characters")
    subjects = getattr(key, "subjects", None)
    if subjects is not None and subject not in subjects:
        raise ConfigurationError("the key does not speak for this subject")


def _check_names(**names: object) -> None:
    """Refuse a claim text out of its limits."""
    for name, value in names.items():
        if not claims.is_name(value):
            raise ConfigurationError(f"{name} is text of 1 to {claims.MAX_NAME} characters")


def _check_audiences(audiences: Mapping[str, str]) -> dict[str, str]:
    """Return the audiences by destination, each destination canonical."""
    for place, audience in audiences.items():
        _check_names(audience=audience)
        try:
            destination.parse(place)
        except MalformedMessage as error:
            raise ConfigurationError(f"audiences: {place!r}: {error}") from error
    return dict(audiences)
