"""Broker URLs on the command line, and the faults of the client libraries as one line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Final

from mqauth.config.kinds import is_broker_url
from mqauth.errors import ConfigurationError

_CLIENTS: Final = ("aio_pika", "aiormq", "kafka", "pamqp")


def check_url(option: str, url: str) -> None:
    """Refuse what is no broker URL; it may hold a password and is not repeated.

    Args:
        option: the option it came with.
        url: ``amqp://...``, ``amqps://...`` or ``kafka://host:port``, more servers after commas.

    Raises:
        ConfigurationError: it is none of them.
    """
    if not is_broker_url(url):
        raise ConfigurationError(f"{option}: must be amqp://..., amqps://... or kafka://host:port")


@contextlib.contextmanager
def reached(option: str) -> Iterator[None]:
    """Turn a client library's failure to reach its broker into one line, and silence its own log.

    Args:
        option: the option that named the broker.

    Raises:
        ConfigurationError: the broker cannot be reached, or refused us.
    """
    for name in _CLIENTS:
        logging.getLogger(name).addHandler(logging.NullHandler())
    try:
        yield
    except Exception as error:
        if not _is_clients(error):
            raise
        raise ConfigurationError(f"{option}: the broker cannot be used ({type(error).__name__})") from error


def _is_clients(error: Exception) -> bool:
    """Tell whether a client library, or the network below it, raised an error."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _CLIENTS
