"""``python -m integration.benchmarks.jwks_table``: what a key cache does when its issuer does not behave.

Ours and PyJWT's ``PyJWKClient``, each with its defaults, are measured in this run against the same server
in another process; time between the steps of a case is skipped on both, waiting inside them is real. The
figures of panva/jose 6.2.18 and auth0 node-jwks-rsa 4.1.0 were measured by the same cases in a study of
2026-08 and are quoted.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
from jwt import jwk_set_cache, jwks_client
from jwt.exceptions import PyJWKClientConnectionError, PyJWKClientError

from integration.keyserver import KeyServer
from mqauth import JWKS, Key, Unavailable
from mqauth.errors import Rejection

KEYS = [Key.generate() for _ in range(8)]
KNOWN, OTHER, NEW = KEYS[:3]


class SkippingClock:
    """The machine's clock, with time that can be skipped."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def now(self) -> float:
        """Return UTC seconds."""
        return time.time() + self.skipped

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic() + self.skipped


class Contender(Protocol):
    """A key cache under test."""

    def find(self, kid: str) -> str:
        """Look a kid up as for a message received now, and return what became of the message."""
        ...

    def skip(self, seconds: float) -> None:
        """Let time pass."""
        ...


class Ours:
    """``mqauth.JWKS``, asked as the pipeline asks it."""

    def __init__(self, server: KeyServer) -> None:
        self._clock = SkippingClock()
        self._jwks = JWKS(server.url, unsafe_http_loopback=True, clock=self._clock)

    def find(self, kid: str) -> str:
        """Return what became of a message with this kid."""
        received = self._clock.now()
        try:
            if self._known(kid):
                return "accepted"
            return (
                "accepted" if self._jwks.refresh(kid, received).get(kid) else "rejected"
            )
        except Unavailable:
            return "deferred"
        except Rejection:
            return "rejected"

    def skip(self, seconds: float) -> None:
        """Let time pass."""
        self._clock.skipped += seconds

    def close(self) -> None:
        """Stop."""
        self._jwks.close()

    def _known(self, kid: str) -> bool:
        try:
            return self._jwks.key_set().get(kid) is not None
        except Unavailable:
            return False


class PyJWT:
    """``jwt.PyJWKClient`` of the installed version."""

    def __init__(self, server: KeyServer) -> None:
        self._clock = SkippingClock()
        jwks_client.time = jwk_set_cache.time = self._clock  # type: ignore[assignment, attr-defined]
        self._client = jwt.PyJWKClient(server.url)

    def find(self, kid: str) -> str:
        """Return what became of a message with this kid."""
        try:
            self._client.get_signing_key(kid)
        except PyJWKClientConnectionError:
            return "connection error"
        except PyJWKClientError:
            return "rejected"
        except jwt.PyJWTError as error:
            return type(error).__name__
        return "accepted"

    def skip(self, seconds: float) -> None:
        """Let time pass."""
        self._clock.skipped += seconds

    def close(self) -> None:
        """Stop."""
        jwks_client.time = jwk_set_cache.time = time  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Case:
    """One row: what is done, and what the quoted caches were found to do."""

    name: str
    run: Callable[[Contender, KeyServer], str]
    jose: str
    jwks_rsa: str


def in_a_row(contender: Contender, server: KeyServer) -> str:
    """200 unknown kids, one after the other, on a warm cache."""
    contender.find(KNOWN.kid)
    return _fetches(server, lambda: [contender.find(f"kid-{n}") for n in range(200)])


def burst(contender: Contender, server: KeyServer) -> str:
    """50 unknown kids at once, on a cache a minute old."""
    contender.find(KNOWN.kid)
    contender.skip(60)
    return _fetches(server, lambda: _at_once(contender, [f"kid-{n}" for n in range(50)]))


def cold_burst(contender: Contender, server: KeyServer) -> str:
    """A known kid asked for 50 times at once, on a cold cache."""
    found: list[str] = []
    count = _fetches(server, lambda: found.extend(_at_once(contender, [KNOWN.kid] * 50)))
    return f"{count}, {found.count('accepted')} accepted"


def outage_old(contender: Contender, server: KeyServer) -> str:
    """A known kid, six minutes into an outage."""
    contender.find(KNOWN.kid)
    server.down()
    contender.skip(360)
    return contender.find(KNOWN.kid)


def outage_unknown(contender: Contender, server: KeyServer) -> str:
    """20 unknown kids in an outage, on a cache a minute old: the issuer answers 503."""
    contender.find(KNOWN.kid)
    contender.skip(60)
    server.behave("status")
    found: list[str] = []
    count = _fetches(
        server, lambda: found.extend(contender.find(f"kid-{n}") for n in range(20))
    )
    return f"{count}, {_all(found)}"


def behind_hanging(contender: Contender, server: KeyServer) -> str:
    """A known kid while three fetches for unknown kids each hang for 2 s and fail."""
    contender.find(KNOWN.kid)
    contender.skip(60)
    server.behave("slow", delay=2)
    before = server.requests
    threads = [
        threading.Thread(target=contender.find, args=(f"kid-{n}",)) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    while server.requests == before:
        pass
    began = time.perf_counter()
    verdict = contender.find(KNOWN.kid)
    taken = time.perf_counter() - began
    for thread in threads:
        thread.join()
    return f"{verdict} after {_duration(taken)}"


def rotated_at_once(contender: Contender, server: KeyServer) -> str:
    """A key published and used a second after a fetch."""
    contender.find(KNOWN.kid)
    server.serve([KNOWN, OTHER, NEW])
    contender.skip(1)
    first = contender.find(NEW.kid)
    contender.skip(31)
    return f"{first}, 31 s later {contender.find(NEW.kid)}"


def removed(contender: Contender, server: KeyServer) -> str:
    """A removed key, after a set without it was fetched for another kid's sake."""
    contender.find(KNOWN.kid)
    contender.find(OTHER.kid)
    server.serve([OTHER, NEW])
    contender.skip(60)
    contender.find(NEW.kid)
    return contender.find(KNOWN.kid)


def empty(contender: Contender, server: KeyServer) -> str:
    """A known kid after one unknown kid met an empty set."""
    contender.find(KNOWN.kid)
    server.serve([])
    contender.skip(60)
    contender.find("unknown")
    return contender.find(KNOWN.kid)


def redirected(contender: Contender, server: KeyServer) -> str:
    """A cold cache whose URL redirects."""
    server.behave("redirect")
    return contender.find(KNOWN.kid)


def thirty_mebibytes(contender: Contender, server: KeyServer) -> str:
    """A cold cache whose set has 30 MiB."""
    server.behave("large")
    return contender.find(KNOWN.kid)


def many_kids(contender: Contender, server: KeyServer) -> str:
    """Seven live kids, three rounds."""
    server.serve(KEYS[:7])
    return _fetches(
        server, lambda: [contender.find(key.kid) for _ in range(3) for key in KEYS[:7]]
    )


CASES = [
    Case("200 unknown kids in a row, warm: requests", in_a_row, "0", "200"),
    Case("50 unknown kids at once, a minute later: requests", burst, "1", "50"),
    Case("50 times a known kid at once, cold: requests", cold_burst, "1", "1"),
    Case(
        "issuer down for 6 min, known kid",
        outage_old,
        "fails",
        "fails (accepted with an option)",
    ),
    Case("issuer down, 20 unknown kids: requests, verdict", outage_unknown, "20", "20"),
    Case(
        "known kid while fetches for three unknown kids hang 2 s each and fail",
        behind_hanging,
        "not blocked",
        "not blocked",
    ),
    Case(
        "key used 1 s after a fetch that lacked it",
        rotated_at_once,
        "refused up to 30 s",
        "accepted",
    ),
    Case(
        "removed key, newer set already fetched",
        removed,
        "refused",
        "accepted up to 10 min",
    ),
    Case(
        "known kid after an empty set was served once",
        empty,
        "fails: keys wiped",
        "not measured",
    ),
    Case("set behind a redirect, cold", redirected, "refused", "refused"),
    Case("set of 30 MiB, cold", thirty_mebibytes, "accepted", "accepted"),
    Case("7 live kids, 3 rounds: requests", many_kids, "not measured", "21"),
]


def measure() -> list[dict[str, str]]:
    """Run every case on both contenders."""
    rows = []
    for case in CASES:
        ours, theirs = (_measured(case, kind) for kind in (Ours, PyJWT))
        cells = {
            "mqauth": ours,
            "pyjwt": theirs,
            "jose": case.jose,
            "jwks_rsa": case.jwks_rsa,
        }
        rows.append({"case": case.name, **cells})
    return rows


def _measured(case: Case, kind: Callable[[KeyServer], Any]) -> str:
    with KeyServer() as server, _closing(kind(server)) as contender:
        server.serve([KNOWN, OTHER])
        return case.run(contender, server)


@contextmanager
def _closing(contender: Any) -> Iterator[Contender]:
    try:
        yield contender
    finally:
        contender.close()


def _fetches(server: KeyServer, action: Callable[[], object]) -> str:
    """Return how many requests an action causes."""
    before = server.requests
    action()
    return str(server.requests - before)


def _at_once(contender: Contender, kids: list[str]) -> list[str]:
    """Look kids up from as many threads at once."""
    start, found = threading.Barrier(len(kids)), list[str]()

    def look(kid: str) -> None:
        start.wait()
        found.append(contender.find(kid))

    threads = [threading.Thread(target=look, args=(kid,)) for kid in kids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def _all(found: list[str]) -> str:
    return f"all {found[0]}" if len(set(found)) == 1 else ", ".join(sorted(set(found)))


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1e6:.0f} us"


def table(rows: list[dict[str, str]]) -> str:
    """Return the rows as a Markdown table."""
    head = f"| case | mqauth | PyJWKClient {jwt.__version__} | jose 6.2.18 | jwks-rsa 4.1.0 |"
    lines = [head, "|---|---|---|---|---|"]
    lines += [
        " | ".join((f"| {row['case']}", *list(row.values())[1:])) + " |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.benchmarks.jwks_table", description=main.__doc__
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    rows = measure()
    print(json.dumps(rows, indent=1) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
