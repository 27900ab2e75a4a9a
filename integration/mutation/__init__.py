"""Mutation of the verifier: small faults are put into our own code, one at a time; the vectors alone must tell.

``python -m integration.mutation [MODULE...]`` prints the score of each module, and the survivors that nobody has
explained. How many are explained of a function stands in ``survivors.json``, with the reason why no vector can
tell. The full run takes a quarter of an hour of one processor. It is no part of the test command, which replays a
sample of it (``tests/test_mutation.py``).
"""

from __future__ import annotations

from typing import Final

MODULES: Final = (
    "wire.base64url", "wire.batch", "wire.claims", "wire.destination", "wire.envelope",
    "wire.json_form", "wire.jwk", "wire.jws", "wire.keys", "wire.memo", "wire.message", "wire.strict_json",
    "wire.template", "judging.judge", "judging.key_lookup", "judging.policy", "judging.token", "judging.verifier",
    "replay.rules", "replay.memory", "letters.authorities", "letters.release",
)  # fmt: skip
"""What makes a verdict: encoding, envelope, claims, keys, the verifier and its judge, policy, replay, releases."""
