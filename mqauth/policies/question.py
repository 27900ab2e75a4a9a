"""What a policy from outside is asked of a message: exactly these members, and nothing else.

What is asked is what the answer is remembered by. So nothing that differs from message to message is in it: no id,
no time, no body, no header. A producer can vary its routing keys alone, within the local rules if there are any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from mqauth.judging.verified import Verified, scope_of
from mqauth.wire import strict_json

VERSION: Final = 1
PROBE: Final[Mapping[str, Any]] = {"v": VERSION, "probe": True}
"""What is asked at a start: it names nobody, so that a policy has to refuse it."""


class Question(NamedTuple):
    """One question.

    Args:
        form: ``direct`` or ``identity``.
        issuer: the verified issuer; of the identity form its trust domain.
        subject: the verified producer.
        audience: whom the message is meant for.
        destination: where it was published, in its canonical form.
        scope: the group or queue on whose behalf it is handled.
        claims: what the authority of the identity form says of the producer, as JSON; ``{}`` in the direct form.
    """

    form: str
    issuer: str
    subject: str
    audience: str
    destination: str
    scope: str
    claims: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The question as the member ``input`` that is posted."""
        members = self._asdict() | {"claims": strict_json.loads(self.claims, depth=8)}
        return {"v": VERSION, **members}


def question_of(verified: Verified, scope: str | None) -> Question:
    """Return what is asked of a message.

    Args:
        verified: the message.
        scope: the configured one, ``None`` where the broker wrapper says it.
    """
    claims, identity = verified.claims, verified.identity
    return Question(
        "direct" if identity is None else "identity",
        claims.iss,
        claims.sub,
        claims.aud,
        verified.destination,
        scope_of(verified.origin, scope),
        b"{}" if identity is None else strict_json.dumps(dict(identity.claims)),
    )
