"""Where the token sits and what it binds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mqauth.errors import Rejection
from mqauth.wire import envelope
from mqauth.wire.claims import Binding
from mqauth.wire.message import Message, form_of

Maker = Callable[..., Message]


def check(message: Message, binding: Binding) -> None:
    """Hold a binding against a message."""
    envelope.check(message, binding, envelope.checked_encoder(form_of(message), binding.hdr))


def test_cover_chooses_the_names(rabbit: Maker) -> None:
    """A producer may cover fewer headers, or absent ones, each once."""
    assert envelope.bind(rabbit(), ["absent", "tenant", "absent"]).hdr == ("absent", "tenant")


def test_rejections_name_no_value(rabbit: Maker) -> None:
    """No header value or name of an attacker stands in the error."""
    binding = envelope.bind(rabbit())
    with pytest.raises(Rejection) as caught:
        check(rabbit(headers=(("TENANT", "secret"), *rabbit().headers)), binding)
    assert "secret" not in str(caught.value)
    assert "TENANT" not in str(caught.value)
