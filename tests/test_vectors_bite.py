"""The vectors bite: each kind of fault that a verifier may have is caught by a vector, in our own verifier."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from types import FunctionType
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from mqauth import ConfigurationError, Issuer, Verifier
from mqauth.judging import judge, key_lookup, token
from mqauth.judging.rollout import WithoutEvidence
from mqauth.letters import release
from mqauth.letters.authorities import ReleaseAuthorities, _check_bindings, _signed
from mqauth.replay import rules
from mqauth.wire import (
    base64url,
    batch,
    claims,
    destination,
    envelope,
    json_form,
    jwk,
    jws,
    keys,
    message,
    strict_json,
)
from mqauth.wire.memo import Memo
from tests import test_vectors
from tests.test_ed25519 import BASE, FIELD, add, encoded, even, number, times
from tests.vectors.answers import P256
from tests.vectors.consumers import Consumer

Patch = Callable[[pytest.MonkeyPatch], None]
FILES: Final = (
    test_vectors.TOKENS,
    test_vectors.ANSWERS,
    test_vectors.BATCH,
    test_vectors.SETTINGS,
)
MESSAGES: Final = {
    vector["name"]: (file, vector) for file in FILES for vector in file["vectors"]
}


@dataclass(frozen=True)
class Fault:
    """A fault, and the vector that catches it: of a message, a sequence, an id, a JWK or a form."""

    name: str
    patch: Patch
    vector: str
    replay: Callable[[str], None]


def judged(name: str) -> None:
    """Judge the message of a vector."""
    file, vector = MESSAGES[name]
    Consumer(file, vector.get("consumer"), vector.get("received")).check(vector)


def found(vectors: Any, name: str) -> Any:
    """Return the vector of a name."""
    return next(vector for vector in vectors if vector["name"] == name)


def read_jwk(name: str) -> None:
    """Read the JWK of a vector."""
    test_vectors.test_each_jwk_becomes_what_its_vector_says(
        found(test_vectors.JWKS["vectors"], name)
    )


def read_set(name: str) -> None:
    """Read the JWK Set of a vector."""
    test_vectors.test_each_set_gives_the_keys_of_its_vector(
        found(test_vectors.JWKS["sets"], name)
    )


def read_form(name: str) -> None:
    """Read the malformed form of a vector."""
    test_vectors.test_what_is_no_message_is_malformed(
        found(test_vectors.FORMS["malformed"], name)
    )


def delivered(name: str) -> None:
    """Judge the deliveries of a sequence."""
    test_vectors.test_each_sequence_of_deliveries_gets_its_verdicts(
        found(test_vectors.SEQUENCES, name)
    )


def claimed(kind: str) -> None:
    """Claim what the vectors of ids name."""
    assert test_vectors.generator.claim_ids()[kind] == test_vectors.CLAIMS[kind]


def edit(function: Any, old: str, new: str) -> Patch:
    """Return what runs a function with one piece of its source in place of another, wherever it is referred to."""
    source = textwrap.dedent(inspect.getsource(function))
    # The formatter may break a piece over lines anywhere between two of its words.
    words = re.findall(r"\w+|[^\w\s]", old)
    piece = re.compile(r"\s*".join(map(re.escape, words)))
    assert len(piece.findall(source)) == 1, f"{function.__qualname__} has changed: {old}"
    edited = piece.sub(lambda _: new.strip(), source)

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        scope: dict[str, Any] = {}
        flags = (
            function.__code__.co_flags & 0x1000000
        )  # from __future__ import annotations
        exec(  # noqa: S102
            compile(edited, "<fault>", "exec", flags),
            function.__globals__,
            scope,
        )
        (made,) = (value for value in scope.values() if isinstance(value, FunctionType))
        monkeypatch.setattr(function, "__code__", made.__code__)

    return patch


def constant(name: str, value: Any, *modules: Any) -> Patch:
    """Return what gives a constant another value."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for module in modules:
            assert getattr(module, name) != value
            monkeypatch.setattr(module, name, value)

    return patch


def checked(algorithm: str, verify: Callable[..., bool]) -> Patch:
    """Return what checks signatures of an algorithm otherwise; the check takes the honest one, too."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        honest = jws._PYJWT[algorithm].verify
        monkeypatch.setattr(
            jws._PYJWT[algorithm], "verify", lambda *what: verify(honest, *what)
        )

    return patch


def any_salt(_honest: Any, data: bytes, key: Any, signature: bytes) -> bool:
    """Accept PSS with a salt of any length."""
    salt = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)
    key.verify(signature, data, salt, hashes.SHA256())
    return True


def low_s(honest: Any, data: bytes, key: Any, signature: bytes) -> bool:
    """Refuse the high one of two values of S."""
    return (
        honest(data, key, signature)
        and int.from_bytes(signature[32:], "big") <= P256 // 2
    )


def der_too(honest: Any, data: bytes, key: Any, signature: bytes) -> bool:
    """Accept DER beside R || S."""
    if len(signature) == 64:
        return bool(honest(data, key, signature))
    key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    return True


def point(raw: bytes) -> Any:
    """Return the point of 32 bytes."""
    whole = int.from_bytes(raw, "little")
    x, y = even(whole & (1 << 255) - 1) or (0, 1)
    return (FIELD - x if whole >> 255 and x else x), y


def with_cofactor(data: bytes, public: Any, signature: bytes) -> bool:
    """Accept an Ed25519 signature if eight times the equation holds, whatever the size of S."""
    key = public.public_bytes_raw()
    scalar, hashed = (
        int.from_bytes(signature[32:], "little"),
        number(signature[:32], key, data),
    )
    right = add(point(signature[:32]), times(hashed, point(key)))
    return encoded(times(8, times(scalar, BASE))) == encoded(times(8, right))


def loose_edwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check Ed25519 with the cofactor."""
    monkeypatch.setattr(jws, "ed25519_holds", with_cofactor)


check, believe, take, header = (
    envelope.check,
    Verifier._believe,
    jws.take_apart,
    jws._check_header,
)
names, scalar, decimal, judge_times = (
    claims._header_names,
    envelope._scalar,
    envelope.is_carried_decimal,
    token.Times.check,
)
MESSAGE_FAULTS: Final[tuple[tuple[str, Patch, str], ...]] = (
    ("token limit too high", constant("MAX_TOKEN", 8193, envelope, jws), "8193 bytes"),
    ("token limit too low", constant("MAX_TOKEN", 8191, envelope), "8192 bytes"),
    ("token limit in characters", edit(envelope.token_of_value, "len(raw)", "len(value)"),
     "8194 bytes of 4097 characters"),
    ("bytes taken for text", edit(envelope.token_of_value, "bytes if on_kafka else str", "bytes | str"),
     "bytes in place of text on RabbitMQ, too large"),
    ("more than three segments", edit(take, "!= SEGMENTS", "< SEGMENTS"), "a fourth segment"),
    ("unused bits", edit(base64url.decode, "last is not None and text[-1] not in last", "False"),
     "bits that no canonical text has"),
    ("kid too long", constant("MAX_KID", 129, keys), "a kid of 129 characters"),
    ("typ in any case", edit(header, 'parameters.get("typ") !=', 'str(parameters.get("typ")).lower() !='),
     "typ in upper case"),
    ("parameters ignored", edit(header, 'parameters.keys() - {"alg", "typ", "kid"}', "False"),
     "a critical extension"),
    ("header with a name twice", edit(strict_json._unique, "len(result) != len(pairs)", "False"),
     "a header with a name twice"),
    ("a claim twice", edit(strict_json._unique, "len(result) != len(pairs)", "False"), "a claim twice"),
    ("NaN", edit(strict_json._float, "math.isfinite(number)", "not math.isinf(number)"), "NaN"),
    ("infinite numbers", edit(strict_json._float, "math.isfinite(number)", "True"), "a number that overflows"),
    ("integers that are rounded", constant("_DECODER", strict_json._WIDE_DECODER, strict_json),
     "an integer beyond 2^53"),
    ("lone surrogates", edit(strict_json._bound, "escapes and any(", "False and any("), "a lone surrogate"),
    ("nesting too deep", constant("MAX_DEPTH", 9, claims), "claims nested 9 deep"),
    ("nesting not deep enough", constant("MAX_DEPTH", 7, claims), "claims nested 8 deep"),
    ("many other claims", constant("MAX_EXTRA", 65, claims), "other claims of 65 values"),
    ("sizes in bytes", edit(claims.is_name, "len(value)", 'len(value.encode("utf-8"))'),
     "an id of 128 characters beyond the BMP"),
    ("sizes in UTF-16", edit(claims.is_name, "len(value)", 'len(value.encode("utf-16-le")) // 2'),
     "an id of 15 characters beyond the BMP"),
    ("DEL is text", constant("_CONTROL", re.compile("[\x00-\x1f\x80-\x9f]"), claims), "U+007F in a sub"),
    ("C1 is text", constant("_CONTROL", re.compile("[\x00-\x1f\x7f]"), claims), "U+0085 in a jti"),
    ("version 1.0", edit(claims._check_members, "type(version) is int and ", ""), "version 1.0"),
    ("version true", edit(claims._check_members, "type(version) is int and ", ""), "version true"),
    ("members of mqa ignored", edit(claims._check_members, "value.keys() in members", "True"),
     "an unknown member of mqa"),
    ("boolean times", edit(claims.time_claim, "type(value) is int", "isinstance(value, int)"), "a boolean time"),
    ("negative times", edit(claims.time_claim, "value >= 0", "True"), "a negative time"),
    ("covered name twice", edit(names, "len(set(value)) == len(value)", "True"), "a covered name twice"),
    ("digest not canonical", constant("_DIGEST", re.compile(r"[A-Za-z0-9\-_]{43}"), claims),
     "a digest whose unused bits are not zero"),
    ("destination respelt", edit(destination._decode, 'quote(text, safe="") == segment', "True"),
     "a destination in another spelling"),
    ("alg of the token", edit(keys.Key.allows, "return algorithm ==", "return True or algorithm =="),
     "alg-swap on kafka:orders"),
    ("PSS salt of any length", checked("PS256", any_salt), "a PSS salt of 20 bytes"),
    ("high S refused", checked("ES256", low_s), "an ECDSA signature with a high S"),
    ("DER", checked("ES256", der_too), "an ECDSA signature in DER"),
    ("S beyond the order", loose_edwards, "an Ed25519 signature whose S is not below the order"),
    ("cofactor", loose_edwards, "an Ed25519 signature that only a cofactor of 8 lets hold"),
    ("revoked later", edit(token.is_revoked, "revoked_at <= received", "revoked_at < received"),
     "a key revoked this second"),
    ("revoked at once", edit(token.is_revoked, "revocation.revoked_at <= received", "True"),
     "a key that will be revoked"),
    ("retired later", edit(judge_times, ">= retires", "> retires"), "issued the second its key retired"),
    ("retired by the clock", edit(judge_times, "claims.iat if appended", "received if appended"),
     "issued a second before its key retired"),
    ("audience unchecked", edit(believe, "claims.aud not in self.audiences", "False"),
     "the audience before the times"),
    ("no leeway of iat", edit(judge_times, "claims.iat > moment + self.leeway", "claims.iat > moment"),
     "issued at the edge of the leeway"),
    ("nbf ignored", edit(judge_times, "claims.nbf is not None and", "False and"), "nbf before exp"),
    ("exp a second later", edit(judge_times, "self.leeway <= moment", "self.leeway < moment"),
     "expired past the leeway"),
    ("empty life", edit(judge_times, "or claims.exp <= claims.iat", "or claims.exp < claims.iat"),
     "expiring when issued"),
    ("lifetime a second shorter", edit(judge_times, "> self.max_lifetime", ">= self.max_lifetime"),
     "living as long as may be"),
    ("any subject", edit(Issuer.speaks_for, "return subject in key.subjects", "return True"),
     "the subject before the destination"),
    ("user_id ignored", edit(Verifier._believe, "expected != claims.sub", "False"),
     "user_id is another subject"),
    ("destination unchecked", edit(check, "binding.dst != message.destination", "False"),
     "the destination before the record key"),
    ("record key unchecked", edit(check, "binding.key !=", "False and binding.key !="),
     "a record key on RabbitMQ"),
    ("body unchecked", edit(check, "binding.bod !=", "False and binding.bod !="), "the body before the headers"),
    ("headers unchecked", edit(check, "binding.hds !=", "False and binding.hds !="), "an occurrence repeated"),
    ("no key taken for an empty one", edit(check, "None if message.key is None else base64url.digest(message.key)",
     'base64url.digest(message.key or b"")'), "no record key"),
    ("tombstone taken for an empty body", edit(check, "None if message.body is None else "
     "base64url.digest(message.body)", 'base64url.digest(message.body or b"")'), "a tombstone"),
    ("case of Unicode", edit(message.fold, "name.lower() if name.isascii() else name.translate(_LOWER)",
     "name.lower()"), "letters beyond ASCII have no case"),
    ("twins unseen", edit(message.fold, "name.lower() if name.isascii() else name.translate(_LOWER)", "name"),
     "a twin in another case"),
    ("absent twins unseen", edit(envelope.refuse_case_twins, "len(folded) == len(exact)", "True"),
     "two covered names that differ in case, neither present"),
    ("sorted by UTF-16", edit(envelope.add_value, "sorted((utf8(name), name) for name in value)",
     'sorted(((utf8(name), name) for name in value), key=lambda pair: pair[1].encode("utf-16-be"))'),
     "a table sorted by UTF-8 and not by UTF-16"),
    ("floats in little endian", edit(scalar, 'struct.pack(">d"', 'struct.pack("<d"'),
     "every type of value"),
    ("times after 2106", edit(scalar, ") < 2**32", ") < 2**33"), "a covered time after 2106"),
    ("times before 1970", edit(scalar, "0 <= (seconds", "-9 <= (seconds"), "a covered time before 1970"),
    ("decimals without sign", edit(decimal, "< 2**31", "< 2**32"), "a covered decimal of 21474836.48"),
    ("decimals of any scale", edit(decimal, "exponent >= -255 and", ""),
     f"a covered decimal of {Decimal(1).scaleb(-256):f}"),
    ("negative zero", edit(decimal, " and not (sign and value == 0)", ""), "a covered decimal of -0.0"),
    ("nodes hashed as leaves are", constant("_NODE", b"", batch), "node-without-prefix on kafka:orders"),
    ("a proof where none belongs", edit(batch.proof_of, "if text is not None", "if False"),
     "proof-without-tree on kafka:orders"),
    ("suffix of direct reply-to", edit(envelope._encoded, 'text.startswith(_DIRECT_REPLY + ".")', "False"),
     "direct reply-to with the broker's suffix"),
)  # fmt: skip
believed, authorities = "if claims.aud not in self.audiences", ReleaseAuthorities.verify
times_first = "self.times.check(claims, key.expires, message, received, waived); "
coverage, evidence = Verifier._check_coverage, token.Times.evidence
SETTINGS_FAULTS: Final[tuple[tuple[str, Patch, str], ...]] = (
    ("times before the audience", edit(believe, believed, f"{times_first}\n    {believed}"),
     "the audience before the times"),
    ("destination after the body", edit(check, "binding.dst != message.destination",
     "message.body == b'' or binding.dst != message.destination"), "the body before the headers"),
    ("append time of a producer", edit(evidence, 'or origin.timestamp_type != "append"', ""),
     "a time that its producer wrote"),
    ("append time at consume", edit(evidence, 'self.at == "consume" or ', ""),
     "append time before a revocation, at consume"),
    ("interceptor unasked", edit(evidence, 'self.append_evidence != "interceptor"', "False"),
     "on RabbitMQ where anybody may write the time"),
    ("append time rounded up", edit(evidence, "origin.timestamp_ms / 1000", "-(-origin.timestamp_ms // 1000)"),
     "appended half a second before its end"),
    ("no append time, so that of receipt", edit(token.Times.moment,
     'received if self.at == "consume" else self.evidence(message)', "self.evidence(message) or received"),
     "no time at all"),
    ("an offset more without a time", edit(WithoutEvidence.names, "offset <= last", "offset <= last + 1"),
     "no time past the offset that is named"),
    ("a partition that is not named", edit(WithoutEvidence.names, "self.through.get(partition)",
     "self.through.get(partition, offset)"), "no time in a partition that is not named"),
    ("signed a second later without a time", edit(WithoutEvidence.names, "issued <= self.through",
     "issued <= self.through + 1"), "no time on RabbitMQ, signed after the moment that is named"),
    ("without a time, whatever the destination", edit(WithoutEvidence.names,
     "not matches(self.destination, message.destination)", "False"),
     "no time at a destination that is not named"),
    ("a named message condemned despite its time", edit(token.Times.moment, "if moment is not None:",
     "if moment is not None and not self.without_evidence:"), "a time at an offset that is named"),
    ("expired by the receipt of what has no time", edit(token.Times.moment, "waived | {Reason.EXPIRED}", "waived"),
     "a release of what has no append time, expired since"),
    ("age unchecked", edit(judge_times, "received - moment > self.max_queue_age", "False"),
     "a millisecond too old"),
    ("revoked despite the evidence", edit(token.is_revoked, "appended is None or ", "True or "),
     "appended before its key was revoked"),
    ("required, whether covered or not", edit(coverage, "bool(message.occurrences(name)) and name in covered",
     "bool(message.occurrences(name))"), "a required header that is not covered"),
    ("required, whether present or not", edit(coverage, "bool(message.occurrences(name)) and name in covered",
     "name in covered"), "a required header that is covered and absent"),
    ("a required property taken for a header", edit(coverage, "name in PROTECTED_PROPERTIES", "False"),
     "a required property on RabbitMQ"),
    ("uncovered headers let in", edit(coverage, "self._reject_unsigned and", "False and"),
     "a header added and not covered"),
    ("users beyond the table", edit(Verifier._believe, ".get(user)", ".get(user, user)"),
     "a user that the table does not have"),
    ("the JWK widens a pin", edit(Issuer.speaks_for, "pinned is not None and subject not in pinned", "False"),
     "the JWK widens no pin"),
    ("a pin widens the JWK", edit(Issuer.speaks_for, "if key.subjects is not None:",
     "if key.subjects is not None and pinned is None:"), "a pin widens no JWK"),
    ("an outage condemns", edit(judge.Judge._refuse, "isinstance(error, OUR_FAULT)", "False"), "no policy"),
    ("unknown keys condemned", edit(key_lookup.looked_up,
     "raise Unavailable(error.cause, error.detail, party) from error",
     'from mqauth.errors import Reason; raise Rejection(Reason.KEY_UNKNOWN, "") from error'),
     "an unknown key while none can be asked for"),
    ("a release asks before the signature", edit(judge.Judge._claim_released,
     "self._verifier.authenticate(message, candidate.token, keys, received)", "pass"),
     "a forged message asks for no authority's keys"),
    ("a release for any scope", edit(judge.Judge._claim_released,
     "release.scope != self.scope_of(message)", "False"),
     "a release for another scope"),
    ("a release before the audience", edit(believe, "claims.aud not in self.audiences",
     "claims.aud not in self.audiences and not waived"), "another audience, and a release that waives all"),
    ("the first of two releases", edit(release.open_release, "len(headers) == 1 and ", ""), "a release twice"),
    ("a release of tokens' type", edit(release.open_release, "typ=RELEASE_TYPE", 'typ="mqauth+jwt"'),
     "a release of the type of tokens"),
    ("claims of a release ignored", edit(release.parse, 'not members.keys() - {*_REQUIRED, "past"}', "True"),
     "a release with an unknown claim"),
    ("waived beyond what is granted", edit(authorities, "release.waive <= self._authority(release).waive", "True"),
     "a release that waives what is not granted"),
    ("a release lives as it says", edit(authorities, "release.exp - release.iat <= self._max_lifetime", "True"),
     "a release that lives a second too long"),
    ("a release from the future", edit(authorities, "release.iat <= received + self._leeway", "True"),
     "a release from the future"),
    ("a release for ever", edit(authorities, "release.exp + self._leeway > received and ", ""),
     "a release past its end"),
    ("a release of any reviewer", edit(_signed, "subjects is None or release.sub in subjects", "True"),
     "a release by a reviewer whom the key does not name"),
    ("a release by a revoked key", edit(_signed, "revocation is None or revocation.revoked_at > received", "True"),
     "a release by a revoked key, made before"),
    ("a release by a retired key", edit(_signed, "not (expires is not None and release.iat >= expires)", "True"),
     "a release made the second its key retired"),
    ("a release of any token", edit(_check_bindings, "release.tok == base64url.digest(token)", "True"),
     "a release of another token"),
    ("a release that covers less", edit(_check_bindings, "release.mqa.hdr == covered", "True"),
     "a release that covers less"),
    ("more hops than letters", edit(release.parse_past, "max(1, len(hops))", "1"),
     "a past of fewer letters than hops"),
)  # fmt: skip
load, end, collect = jwk.load_key, jwk._end, jwk.load_key_set
COPIES: Final[tuple[tuple[str, Patch, str], ...]] = (
    ("any place is a re-read", edit(rules.judge, "entry.place != request.place", "False"),
     "Kafka: the same offset again is a re-read, another one a copy"),
    ("a redelivery is a copy", edit(rules.judge, "not request.redelivered", "True"),
     "RabbitMQ: a redelivery is a duplicate, anything else a copy"),
    ("a copy is a redelivery", edit(rules.judge, "not request.redelivered", "False"),
     "RabbitMQ: a redelivery is a duplicate, anything else a copy"),
    ("one id for all producers", edit(rules.claim_id, "_PRODUCERS[issuer, subject] + ", ""),
     "the id of another producer's message is no copy of it"),
    ("the rest of a path unread", edit(batch.Proven.proves, "met[0] != node or met[1] != rest", "met[0] != node"),
     "a path altered in its tail after a sibling was proven"),
    ("what is held is a copy", edit(rules.judge, "_FRESH if entry.lease_ends <= now else ClaimStatus.HELD",
     "ClaimStatus.REPLAYED"), "RabbitMQ: a redelivery waits while the message is held"),
    ("partitions mixed up", edit(rules.judge, "entry.place != request.place",
     "entry.place and entry.place[3] != request.place[3]"),
     "Kafka: the same offset of another partition is another place"),
    ("one scope for all", edit(judge.Judge._request,
     "self._scope or origin.scope or self.scope_of(delivery.message)", '"one"'),
     "each group handles a message once"),
    ("forgotten before the leeway ends", edit(judge.Judge._request, "claims.exp + self._retention", "claims.exp"),
     "a copy is known to the end of the longest leeway"),
    ("a release forgotten before its end", edit(judge.Judge._claim_released,
     "max(claim.expires, float(release.exp + self._verifier.retention))", "claim.expires"),
     "a release is good for once"),
    ("a replay waived unasked",
     edit(judge.Judge._claim_released, "or Reason.REPLAYED in release.waive", "or True"),
     "what was handled is no news, whoever releases it"),
    ("a held release is a copy", edit(judge.Judge._claim_released, "redelivered=True", "redelivered=False"),
     "a release that is held"),
)  # fmt: skip
FAULTS: Final = (
    *(Fault(*found, delivered) for found in COPIES),
    Fault("index in little endian", edit(rules.batch_id, '"big"', '"little"'), "messages", claimed),
    Fault("a release claimed as a message", edit(rules.release_id, "_NO_MESSAGE + ", ""), "releases", claimed),
    *(Fault(*found, judged) for found in (*MESSAGE_FAULTS, *SETTINGS_FAULTS)),
    Fault("use ignored", edit(load, 'use == "sig" or', "True or"), "use enc", read_jwk),
    Fault("key_ops ignored", edit(load, '"verify" in operations', "True"), "key_ops without verify", read_jwk),
    Fault("private keys", constant("_PRIVATE", frozenset(), jwk), "private", read_jwk),
    Fault("small RSA keys", constant("MIN_RSA_BITS", 2047, keys), "RSA of 2047 bits", read_jwk),
    Fault("small RSA exponents", constant("MIN_RSA_EXPONENT", 3, keys), "the RSA exponent 3", read_jwk),
    Fault("small order", constant("_SMALL_ORDER", frozenset(), jwk), "a point of small order", read_jwk),
    Fault("RSA without alg", edit(load, "not isinstance(public, rsa.RSAPublicKey)", "True"),
          "RSA without alg", read_jwk),
    Fault("exp unread", edit(end, "not _is_time(expires)", "False"), "exp null", read_jwk),
    Fault("one bad key loses the set",
          edit(collect, 'error}")\n            continue', 'error}")\n            raise'),
          "a key that cannot be read beside one that can", read_set),
    Fault("the first of two keys", edit(collect, "!= key", "is None"), "two keys under one kid", read_set),
    Fault("values 33 deep", edit(json_form.value_from_form, "depth > 0", "True"), "lists nested 33 deep",
          read_form),
    Fault("base64 not canonical", edit(json_form._bytes, "_base64(raw) == value", "True"), "unused bits in base64",
          read_form),
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_is_caught_by_its_vector(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vector has its verdict, and another one from a verifier with the fault."""
    fault.replay(fault.vector)
    # what is remembered of earlier messages would hide a fault, or outlive it
    monkeypatch.setattr(jws, "_HEADERS", Memo(jws._check_header))
    monkeypatch.setattr(destination, "parse", Memo(destination._parse).__getitem__)
    fault.patch(monkeypatch)
    with pytest.raises((AssertionError, ConfigurationError, pytest.fail.Exception)):
        fault.replay(fault.vector)


def test_the_page_counts_the_faults() -> None:
    """The wire profile says how many kinds of fault the vectors catch, and each has a name of its own."""
    page = (test_vectors.FOLDER.parent.parent / "docs" / "wire-profile.md").read_text(
        "utf-8"
    )
    assert f"puts {len(FAULTS)} kinds of fault into our verifier" in page
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
