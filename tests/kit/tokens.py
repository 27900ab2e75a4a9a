"""How tests find a token in what people read."""

from __future__ import annotations

from mqauth.wire.message import Message


def tokens_in(text: str, message: Message) -> list[str]:
    """Return the beginnings of a message's tokens that stand in a text.

    Each token begins with the base64url of '{"', ``eyJ``, which a random kid or jti may hold, too.
    """
    values = (
        value if isinstance(value, bytes) else str(value).encode()
        for _, value in message.headers
    )
    begins = [value[:16].decode() for value in values if value.startswith(b"eyJ")]
    return [each for each in begins if each in text]
