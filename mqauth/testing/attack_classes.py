"""The classes of attacks on signed messages: which attack of the suite stands for each, and what holds elsewhere.

The classes were gathered from CVEs, RFCs and the trackers of systems that sign messages. What somebody who may
write to the broker can try is in the suite. What needs an issuer, a disk or an operator's mistake cannot be
published as a message; ``elsewhere`` names the test of this repository that holds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackClass:
    """One class of attacks.

    Args:
        number: stable.
        story: what is tried.
        source: where it was seen.
        attacks: names of attacks in the suite.
        elsewhere: tests that hold what no message can show, ``path::name``; or why there is nothing to hold.
    """

    number: int
    story: str
    source: str
    attacks: tuple[str, ...] = ()
    elsewhere: str = ""


def classes_of(names: Iterable[str]) -> frozenset[int]:
    """Return the numbers of the classes for which some of these attacks stand."""
    classes = frozenset(names)
    return frozenset(each.number for each in CLASSES if classes & frozenset(each.attacks))


def _rows() -> tuple[AttackClass, ...]:
    """Return the classes of the table below, numbered by their order."""
    rows = (line.split("|") for line in _TABLE.strip().splitlines())
    return tuple(
        AttackClass(
            number=number,
            story=story.strip(),
            source=source.strip(),
            attacks=tuple(names.split()),
            elsewhere=rest.strip(),
        )
        for number, (story, source, names, rest) in enumerate(rows, 1)
    )


_TABLE: Final = """
`alg: none`, in any case | RFC 8725 §2.1; CVE-2026-28802 | alg-none alg-none-in-another-case alg-left-out |
HMAC with a public key as the secret | CVE-2015-9235; CVE-2022-29217 | alg-hmac hmac-with-pem hmac-with-der |
No list of algorithms, so that the header decides | CVE-2024-37568 | alg-swap alg-of-another-kind alg-is-a-list |
The list is held against the header, and the key has another algorithm | CVE-2026-48523 | alg-swap alg-of-another-kind | tests/test_jws.py::test_the_key_decides_the_algorithm
One key under two algorithms | RFC 8725 §3.1 | alg-swap alg-of-another-kind | tests/test_keys.py::test_generated_keys_sign_with_their_algorithm
A key inside the token is trusted | CVE-2026-27962 | embedded-key embedded-certificate |
A key URL in the token is fetched | RFC 8725 §3.10 | own-key-url certificate-url key-url-of-the-cloud | tests/test_jwks.py::test_anything_but_a_good_answer_is_a_failure
The message says where the keys are | Amazon SNS `SigningCertURL` | keys-named-by-message |
Injection by `kid` | RFC 8725 §3.10 | kid-is-a-path kid-is-sql kid-is-a-url kid-too-long kid-with-line-break kid-is-a-number kid-left-out |
A flood of unknown kids asks the issuer without end | CVE-2026-48524 | unknown-key-flood | tests/test_jwks_rules.py::test_a_flood_of_random_kids_costs_the_issuer_one_attempt_in_half_a_minute
A key made for another purpose | RFC 7517 §4.2 | other-type | tests/test_jwk.py::test_a_bad_key_is_skipped_with_its_position
A key of another issuer than `iss` | RFC 8725 §3.8 | unknown-key impersonation | tests/test_vectors.py::test_each_message_gets_its_verdict
A weak, short or empty key | RFC 8725 §3.5 | | tests/test_keys.py::test_weak_and_foreign_keys_are_refused
A revoked or retired key | kroxylicious #3194 | revoked-key retired-key | tests/test_jwks_rules.py::test_a_key_that_changed_under_its_kid_counts_at_once
Private keys in what is published | kroxylicious #3195 | | tests/test_keys.py::test_a_key_set_holds_public_halves_only
Without keys or verifier everything is let in | CVE-2017-1000001; CVE-2026-28498 | in-an-outage |
An extension that must be understood, and is not | CVE-2025-59420; CVE-2026-32597 | critical-parameter payload-not-encoded |
An encrypted or nested token | CVE-2023-51774 | encrypted nested |
The JSON form in place of the compact one | CVE-2022-39227 | json-form json-without-signatures |
A header that nothing protects overrides the signed one | GHSA-jc38-x7x8-2xc8 | json-with-loose-header |
A JSON name twice | RFC 7515 §4 | claim-twice parameter-twice |
A token of any size | CVE-2025-61920; CVE-2025-27144 | oversize-token many-dots payload-too-deep |
A detached or unencoded payload | CVE-2026-48525 | payload-detached payload-not-encoded |
Bombs that inflate or iterate | CVE-2024-33664; CVE-2024-28102 | compressed many-iterations |
The same token in another text, past a replay cache | RFC 7515 §2 | signature-padded signature-not-canonical space-before line-break-behind copy |
Several tokens, or a header in several spellings | RFC 9449 §4.3 | two-tokens two-equal-tokens honest-and-forged |
Other encodings and look-alikes | RFC 8725 §3.7 | not-ascii payload-of-another-encoding bearer garbage-token |
A comparison that tells by its time | CVE-2016-7036 | | Nothing to hold: signatures are asymmetric, and no secret is compared.
Tokens in logs and dead letters | CVE-2025-65015 | | integration/audit/test_audit.py::test_no_token_in_any_log
`iss` missing, partial or in a list | CVE-2024-53861 | foreign-issuer issuer-list issuer-longer no-iss |
`aud` missing, wrong or too broad | RFC 8725 §3.9 | other-audience audience-list audience-wildcard no-aud |
`exp` missing or absurdly far | PyJWT's default | claim-left-out claims-bent immortal expiry-absurd expiry-fraction expiry-negative expiry-true |
A window that is open on both sides | Choria `ValidateTTL` | from-the-future too-early expired no-iat |
Tokens made now for later | RFC 9449 §11.2 | from-the-future too-early |
No id, so that nothing is checked | TaktX `NonceStore` | no-jti id-empty id-null |
A token of another kind | RFC 8725 §3.11 | other-type type-jwt type-left-out type-of-a-release |
Injection by claims | RFC 8725 §3.10 | subject-is-sql subject-with-line-break |
The subject is not the one that the broker knows | emqx-auth-jwt #47 | impersonation subject-in-another-case | tests/test_vectors.py::test_each_consumer_gives_its_verdict
A setting that silently does nothing | QStash `clock_tolerance` | | tests/test_config.py::test_what_contradicts_is_refused
Another body under a valid token | RFC 9449 §11.7 | body-changed body-emptied body-appended bomb-unsigned lying-about-body sibling-body |
The signer covers next to nothing | GHSA-x9cc-346q-g27m | body-not-bound headers-not-bound destination-not-bound no-mqa body-bound-to-nothing |
Another header under a valid token | Celery; Symfony #65679 | header-changed header-stripped header-renamed header-twice type-added reply-to-added correlation-added lying-about-header |
Another decoder | Celery | content-type-changed encoding-added |
Another destination | Amazon SNS `TopicArn` | rerouted destination-wildcard lying-about-destination |
Another record key | gxf `stripAvroHeader` | record-key-changed record-key-emptied lying-about-record-key |
Parts that are joined without their lengths | celery #9010 | key-moved-to-body header-renamed |
Absent, empty and null | CloudEvents DSSE | tombstone body-emptied record-key-emptied token-empty token-null |
Objects are signed and not bytes | fedmsg #403 | body-reserialised |
Downgrade and stripping | Symfony `v2:`; MySensors #296 | no-token token-renamed token-in-body older-scheme version-text version-fraction batch-of-version-2 |
Deserialised before it is verified | Symfony #64197 | bomb-unsigned | tests/test_kafka_consumer.py::test_decode
Replay: in the window, after it, after a restart | RFC 9449 §11.1 | copy copy-after-a-restart expired |
Copies that race | adcp `claim` | race | integration/test_store_race.py::test_race
A flood that evicts an id, or burns it | RFC 9449 §11.1 | burnt-id unknown-key-flood | tests/test_replay.py::test_a_full_store_defers_and_expiry_makes_room
Replay by re-drive, retry queue or mirror | svix #93 | copy release-forged | integration/review/test_laundering.py::test_what_an_attacker_sends_again_is_rejected_by_name
A dead letter that comes back trusted | Symfony | letter-republished release-forged | integration/review/test_laundering.py::test_nothing_a_letter_carries_acts_when_it_is_redriven
A refused message that comes back in a loop, or fails a whole batch | actor-ts #991 | no-token sibling-body |
Lost in an outage of the verifier | NServiceBus #4535 | in-an-outage |
Settled although the dead letter failed | fhir-server #2458 | letter-refused | mqauth/testing/contract.py::test_dead_letters_missing
Forgeries that flood audit and dead letters | TaktX | unknown-key-flood | integration/audit/test_audit.py::test_flood
Any of several verifiers says yes | fedmsg #396 | honest-and-forged two-tokens |
Everything without a rule is allowed | fedmsg `routing_nitpicky` | forbidden-producer | tests/test_policy.py::test_an_empty_policy_refuses_everything
The producer's name from a header | TaktX | producer-by-header |
Keys in a topic that producers may write | TaktX | keys-named-by-message | Nothing to hold: keys come from the issuer, never from the broker.
Keys or tokens fetched in plain text | Curity; Choria | | integration/test_jwks_http.py::test_bad_certificates_are_refused
"""  # noqa: E501 - a row is a line
CLASSES: Final = _rows()
"""Every class, by its number."""
