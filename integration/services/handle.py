"""The handle that tests hold of a service, whatever runs it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Self

from integration.services.control import Control, ForeignServer
from integration.services.machine import UnavailableError
from integration.services.probes import until_ready

READY_WITHIN = 180.0  # 4 s on an idle machine; twenty were seen on a busy one


@dataclass(frozen=True, kw_only=True)
class Service(ABC):
    """A running service: where it is, which version, and what can be done to it."""

    ready_within: ClassVar[float] = READY_WITHIN

    url: str
    version: str
    control: Control = field(repr=False, compare=False)

    @staticmethod
    @abstractmethod
    def ask(url: str, timeout: float) -> str:
        """Return what the server at a URL says of its version, by its own protocol."""

    @property
    def origin(self) -> str:
        """Where the service comes from, for people."""
        return self.control.origin

    @property
    def ours(self) -> bool:
        """Tell whether it can be stopped, started and paused."""
        return not isinstance(self.control, ForeignServer)

    def probe(self, timeout: float = 2.0) -> str:
        """Return the server's answer, or raise NotReadyError when there is none in time."""
        return self.ask(self.url, timeout)

    def start(self) -> None:
        """Start it where it is down, or resume it; return when it is ready on the same port."""
        self.control.start()
        self._until_ready()

    def stop(self) -> None:
        """Shut it down in order, its data kept."""
        self.control.stop()

    def restart(self) -> None:
        """Shut it down in order and start it again, its data kept; return when it is ready."""
        self.control.stop()
        self.start()

    def kill(self) -> None:
        """End it without warning, its data kept."""
        self.control.kill()

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing answers."""
        self.control.pause()

    def resume(self) -> None:
        """Let it go on; return when it answers."""
        self.control.resume()
        self._until_ready()

    def close(self) -> None:
        """End it for good and remove its data."""
        self.control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _until_ready(self) -> None:
        until_ready(
            self.probe,
            timeout=self.ready_within,
            ended=self.control.ended,
            tail=self.control.tail,
        )

    @classmethod
    def ready(cls, url: str, control: Control, version: str | None = None) -> Self:
        """Return the handle of a started server once it answers; a server that does not is closed."""
        try:
            told = until_ready(
                lambda timeout: cls.ask(url, timeout),
                timeout=cls.ready_within, ended=control.ended, tail=control.tail,
            )  # fmt: skip
        except BaseException:
            control.close()
            raise
        return cls(url=url, version=version or told, control=control)


def from_environment(variable: str) -> tuple[str, ForeignServer] | None:
    """Return the URL that an environment variable gives, with a control that refuses."""
    url = os.environ.get(variable)
    return (url, ForeignServer(variable)) if url else None


def require_4(product: str, version: str) -> None:
    """Refuse a server older than version 4."""
    if version.startswith("<") or int(version.split(".", maxsplit=1)[0]) < 4:
        raise UnavailableError(f"{product} {version} is too old: 4.0 or newer is needed")
