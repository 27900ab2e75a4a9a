"""Standard Webhooks against the attack classes: its three headers on a message, a secret that both sides share."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from mail import FORGED, OTHER, Mail, Trial, outcome  # isort: skip

NAME = "Standard Webhooks"
PACKAGE = "standardwebhooks"
SECRET = b"a secret of thirty-two characters"


def now(seconds: int = 0) -> datetime.datetime:
    """Return the time so many seconds from now, in whole seconds."""
    return datetime.datetime.fromtimestamp(
        int(datetime.datetime.now().timestamp()) + seconds, datetime.UTC
    )


def seal(
    mail: Mail, *, secret: bytes = SECRET, seconds: int = 0, name: str = "msg_1"
) -> Mail:
    """Return the mail with its three headers."""
    moment = now(seconds)
    signature = Webhook(secret).sign(name, moment, mail.body.decode())
    return mail.but(
        webhook_id=name,
        webhook_timestamp=str(int(moment.timestamp())),
        webhook_signature=signature,
    )


def receive(mail: Mail) -> Any:
    """Return what a handler is given."""
    return Webhook(SECRET).verify(mail.body, mail.headers)


def twice(mail: Mail) -> None:
    """Receive the mail two times."""
    receive(mail)
    receive(mail)


def shifted() -> Any:
    """Move bytes from the body to the id: the three are joined by dots."""
    later = int(now(5).timestamp())
    mail = seal(replace(Mail(), body=f"{later}.5".encode()))
    stamp = mail.headers["webhook-timestamp"]
    return receive(
        replace(mail, body=b"5").but(
            webhook_id=f"msg_1.{stamp}", webhook_timestamp=str(later)
        )
    )


def trials() -> dict[int, Trial]:
    """Return a trial for each class that can be mounted, by the number of the class."""
    honest, forged = seal(Mail()), seal(Mail(), secret=b"another secret of some length")
    good, bad = honest.headers["webhook-signature"], forged.headers["webhook-signature"]
    return {
        0: lambda: receive(honest),
        1: lambda: receive(honest.but(webhook_signature="none,")),
        FORGED: lambda: receive(forged),
        22: lambda: receive(honest.but(webhook_signature="v1," * 100_000)),
        25: lambda: receive(honest.but(webhook_signature=good + "=")),
        26: lambda: receive(honest.but(webhook_signature=f"{bad} {good}")),
        27: lambda: receive(honest.but(webhook_signature=good.replace(",", ", "))),
        33: lambda: receive(seal(Mail(), seconds=3600)),
        34: lambda: receive(seal(Mail(), seconds=3600)),
        35: lambda: receive(honest.but(webhook_id=None)),
        40: lambda: receive(replace(honest, body=OTHER)),
        42: lambda: receive(honest.but(type="refunds.pay", reply_to="evil")),
        43: lambda: receive(honest.but(content_type="application/x-yaml")),
        44: lambda: receive(replace(honest, place="refunds")),
        46: shifted,
        47: lambda: receive(replace(honest, body=b"")),
        48: lambda: receive(replace(honest, body=b'{"amount":10}')),
        49: lambda: receive(honest.but(webhook_signature=None)),
        50: lambda: receive(replace(forged, body=b"[" * 100_000)),
        51: lambda: twice(honest),
        52: lambda: twice(honest),
        54: lambda: twice(honest),
        60: lambda: receive(honest.but(webhook_signature=f"{bad} {good}")),
    }


def run() -> dict[str, str]:
    """Return the outcome of each class."""
    return {
        str(number): outcome(trial, (WebhookVerificationError,))
        for number, trial in trials().items()
    }
