"""In-process measurements: what signing and judging one message cost, by algorithm, body size and headers.

Times are CPU times. One thread does all the work, so on an idle machine they equal wall time, and on a busy one
they stay the same.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding

from integration.benchmarks.client.rounds import (
    Measured,
    Progress,
    Rounds,
    Spread,
    Stopwatch,
    Variant,
    alternate,
)
from integration.benchmarks.client.workload import (
    BATCH,
    BODY_SIZE,
    HEADER_COUNT,
    LIFETIME,
    Refusals,
    Workload,
    guard,
)
from mqauth.flow import run
from mqauth.judging.pipeline import Pipeline
from mqauth.testing.forge import Forge
from mqauth.wire import destination
from mqauth.wire.jws import ed25519_holds, ed25519_signer
from mqauth.wire.keys import ALGORITHMS, Key
from mqauth.wire.message import Message, Origin

SIZES: Final = (100, 1024, 65_536)
HEADERS: Final = (0, 5, 20)
PLACE: Final = destination.kafka("bench")
BATCH_NAME: Final = f"batch{BATCH}"
OPERATIONS: Final = ("sign", "verify", "verdict", "signature_sign", "signature_verify")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of the table.

    Args:
        kind: an algorithm, or ``batch64``: EdDSA with one signature for 64 messages.
        size: bytes of the body.
        headers: number of application headers.
    """

    kind: str
    size: int = BODY_SIZE
    headers: int = HEADER_COUNT

    def name(self, operation: str) -> str:
        """Return the name of a variant."""
        return f"{self.kind} {self.size} {self.headers} {operation}"


def cells(kinds: Iterable[str] = (*ALGORITHMS, BATCH_NAME)) -> list[Cell]:
    """Return every combination of kind, body size and number of headers."""
    return [
        Cell(kind=kind, size=size, headers=headers)
        for kind in kinds
        for size in SIZES
        for headers in HEADERS
    ]


class Operations:
    """The messages of one cell, signed beforehand, and the operations that are measured on them.

    Args:
        cell: what is measured.
        count: messages in one round; in batches rounded up to whole ones.
        forge: has keys of the cell's algorithm; shared between cells, because RSA keys take long to make.

    Attributes:
        signed: the messages.
    """

    def __init__(self, cell: Cell, count: int, forge: Forge | None = None) -> None:
        self._cell = cell
        self._batched = cell.kind == BATCH_NAME
        self._forge = forge or _forge(cell.kind)
        self._signer = self._forge.signer()
        self._keys = self._forge.keys
        self._count = -(-count // BATCH) * BATCH if self._batched else count
        self._plain = Workload(size=cell.size, headers=cell.headers).message(PLACE)
        self.signed = [
            delivered(found, offset) for offset, found in enumerate(self._sealed())
        ]

    def variants(self, *, signature: bool) -> Iterator[Variant]:
        """Yield the operations, and those of the bare signature if ``signature`` is true."""
        wanted = OPERATIONS if signature else OPERATIONS[:3]
        for operation in wanted:
            yield Variant(self._cell.name(operation), getattr(self, operation))

    def sign(self) -> Measured:
        """Sign messages."""
        return _timed(self._sealed, self._count)

    def verify(self) -> Measured:
        """Verify the tokens, without policy and replay claim."""
        verifier, keys, now = self._forge.verifier(), self._keys, time.time()

        def work() -> None:
            for message in self.signed:
                candidate = verifier.open(message)
                verifier.verify(message, candidate, keys, now)
                if not candidate.learnt:
                    verifier.learn(candidate)

        return _timed(work, self._count)

    def verdict(self) -> Measured:
        """Process the messages from receipt to the confirmed claim, with an empty handler."""
        pipeline, letters = guard(self._forge, PLACE), Refusals()
        measured = _timed(lambda: judge_all(pipeline, self.signed, letters), self._count)
        letters.check()
        return measured

    def signature_sign(self) -> Measured:
        """Make bare signatures over as many bytes as a token has."""
        sign, _ = primitives(self._forge.key)
        data = self._signing_input()
        return _timed(lambda: _repeat(self._count, sign, data), self._count)

    def signature_verify(self) -> Measured:
        """Verify bare signatures over as many bytes as a token has."""
        sign, verify = primitives(self._forge.key)
        data = self._signing_input()
        signature = sign(data)
        return _timed(lambda: _repeat(self._count, verify, signature, data), self._count)

    def kept_bytes(self) -> float:
        """Return the bytes of memory that one message leaves behind in the pipeline, its claim above all.

        Remembered tokens do not count: they are bounded, and forgotten all at once when they are full.
        """
        pipeline, letters = guard(self._forge, PLACE), Refusals()
        tracemalloc.start()
        judge_all(pipeline, self._sealed(), letters)
        pipeline.verifier.tokens.clear()
        before, _ = tracemalloc.get_traced_memory()
        judge_all(pipeline, self.signed, letters)
        pipeline.verifier.tokens.clear()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        letters.check()
        return (after - before) / self._count

    def _sealed(self) -> list[Message]:
        if not self._batched:
            return [self._signer.sign(self._plain) for _ in range(self._count)]
        batch = [self._plain] * BATCH
        return [
            found
            for _ in range(self._count // BATCH)
            for found in self._signer.sign_many(batch)
        ]

    def _signing_input(self) -> bytes:
        """Return the bytes that the first token's signature covers."""
        token: Any = self.signed[0].headers[-1][1]
        return bytes(token.partition(b"~")[0].rpartition(b".")[0])


def delivered(message: Message, offset: int) -> Message:
    """Return a message as Kafka's consumer delivers it."""
    return replace(
        message, origin=Origin(scope="bench", topic="bench", partition=0, offset=offset)
    )


def judge_all(pipeline: Pipeline, messages: Iterable[Message], letters: Refusals) -> None:
    """Process messages to their end, with a handler that does nothing."""
    for message in messages:
        run(pipeline.process(pipeline.receive(message), _nothing, letters))


def _nothing(_verified: object) -> None:
    """Handle a message."""


def primitives(
    key: Key,
) -> tuple[Callable[[bytes], bytes], Callable[[bytes, bytes], object]]:
    """Return the functions of our libraries that sign and verify with a key, with nothing around them."""
    private, public = key.private, key.public
    if isinstance(private, ed25519.Ed25519PrivateKey) and isinstance(
        public, ed25519.Ed25519PublicKey
    ):
        signed_by = public
        return ed25519_signer(private), lambda made, data: ed25519_holds(
            data, signed_by, made
        )
    if isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(
        public, ec.EllipticCurvePublicKey
    ):
        scheme = ec.ECDSA(
            hashes.SHA384() if key.algorithm == "ES384" else hashes.SHA256()
        )
        ours, theirs = private, public
        return lambda data: ours.sign(data, scheme), lambda made, data: theirs.verify(
            made, data, scheme
        )
    return _rsa(private, public, pss=key.algorithm == "PS256")


def _rsa(
    private: Any, public: Any, *, pss: bool
) -> tuple[Callable[[bytes], bytes], Callable[[bytes, bytes], object]]:
    digest = hashes.SHA256()
    pad = (
        padding.PSS(mgf=padding.MGF1(digest), salt_length=32)
        if pss
        else padding.PKCS1v15()
    )
    return lambda data: private.sign(data, pad, digest), lambda made, data: public.verify(
        made, data, pad, digest
    )


def measure(
    found: Iterable[Cell],
    *,
    rounds: int,
    count: int,
    base_count: int,
    progress: Progress = lambda _: None,
    enough: Callable[[], bool] = lambda: False,
) -> Rounds:
    """Measure cells in alternating rounds.

    Args:
        found: the cells.
        rounds: measured rounds of each.
        count: messages in a round.
        base_count: messages in a round of the cells of 1 KiB and five headers, which also get the bare signature.
        progress: called with what is measured next.
        enough: once it returns true, no other round begins.
    """
    variants: list[Variant] = []
    forges: dict[str, Forge] = {}
    for cell in found:
        base = (cell.size, cell.headers) == (BODY_SIZE, HEADER_COUNT)
        forge = forges.setdefault(cell.kind, forges.get(cell.kind) or _forge(cell.kind))
        variants += Operations(cell, base_count if base else count, forge).variants(
            signature=base
        )
    return alternate(
        variants,
        rounds,
        progress=lambda name: progress(f"in process, {name}"),
        enough=enough,
    )


def _forge(kind: str) -> Forge:
    return Forge(lifetime=LIFETIME, algorithm="EdDSA" if kind == BATCH_NAME else kind)


def microseconds(found: Rounds, name: str) -> float | None:
    """Return the median CPU microseconds a message of a variant, ``None`` if it failed."""
    rounds = found.measured.get(name)
    return (
        None
        if not rounds
        else round(Spread.of(one.cpu_per_1000 * 1000 for one in rounds).median, 2)
    )


def short(
    found: Rounds, kinds: Iterable[str] = (*ALGORITHMS, BATCH_NAME)
) -> dict[str, dict[str, float | None]]:
    """Return the short form, at 1 KiB and five headers; ``verify_us`` is the whole verdict."""
    told = {"sign_us": "sign", "verify_us": "verdict", "signature_sign_us": "signature_sign",
            "signature_verify_us": "signature_verify"}  # fmt: skip
    return {
        kind: {
            name: microseconds(found, Cell(kind=kind).name(operation))
            for name, operation in told.items()
        }
        for kind in kinds
    }


def _timed(work: Callable[[], object], count: int) -> Measured:
    watch = Stopwatch()
    watch.start()
    work()
    return watch.stop(count)


def _repeat(count: int, function: Callable[..., object], *arguments: bytes) -> None:
    for _ in range(count):
        function(*arguments)
