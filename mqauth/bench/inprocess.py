"""Without a broker: what signing and judging one message cost, by algorithm, body size and number of headers.

Told in CPU time: one thread does it all, so that it is the wall's on a machine that does nothing else, and stays
what it is on one that does.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding

from mqauth.bench.rounds import Measured, Progress, Rounds, Spread, Stopwatch, Variant, alternate
from mqauth.bench.workload import BATCH, BODY_SIZE, HEADER_COUNT, LIFETIME, Refusals, Workload, guard
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
    """One field of the table.

    Args:
        kind: an algorithm, or ``batch64``: EdDSA, one signature for 64 messages.
        size: bytes of the body.
        headers: how many application headers.
    """

    kind: str
    size: int = BODY_SIZE
    headers: int = HEADER_COUNT

    def name(self, operation: str) -> str:
        """Return the name of a variant."""
        return f"{self.kind} {self.size} {self.headers} {operation}"


def cells(kinds: Iterable[str] = (*ALGORITHMS, BATCH_NAME)) -> list[Cell]:
    """Return every combination of kind, body size and number of headers."""
    return [Cell(kind=kind, size=size, headers=headers) for kind in kinds for size in SIZES for headers in HEADERS]


class Subject:
    """One cell's messages, signed beforehand, and the operations that are measured on them.

    Args:
        cell: what to measure.
        count: messages of one round; in batches rounded up to whole ones.
        forge: of the cell's algorithm; RSA keys take their time to make.
    """

    def __init__(self, cell: Cell, count: int, forge: Forge | None = None) -> None:
        self._cell = cell
        self._batched = cell.kind == BATCH_NAME
        self._forge = forge or _forge(cell.kind)
        self._signer = self._forge.signer()
        self._keys = self._forge.keys
        self._count = -(-count // BATCH) * BATCH if self._batched else count
        self._plain = Workload(size=cell.size, headers=cell.headers).message(PLACE)
        self._signed = [delivered(found, offset) for offset, found in enumerate(self._sealed())]

    def variants(self, *, signature: bool) -> Iterator[Variant]:
        """Yield the operations, with the bare signature where it is wanted."""
        wanted = OPERATIONS if signature else OPERATIONS[:3]
        for operation in wanted:
            yield Variant(self._cell.name(operation), getattr(self, operation))

    def sign(self) -> Measured:
        """Sign messages."""
        return _timed(self._sealed, self._count)

    def verify(self) -> Measured:
        """Verify the tokens, without policy and claim."""
        verifier, keys, now = self._forge.verifier(), self._keys, time.time()

        def work() -> None:
            for message in self._signed:
                candidate = verifier.open(message)
                verifier.verify(message, candidate, keys, now)
                if not candidate.learnt:
                    verifier.learn(candidate)

        return _timed(work, self._count)

    def verdict(self) -> Measured:
        """Carry the messages through the pipeline, from receipt to confirmed claim, with an empty handler."""
        pipeline, letters = guard(self._forge, PLACE), Refusals()
        measured = _timed(lambda: judge_all(pipeline, self._signed, letters), self._count)
        letters.check()
        return measured

    def signature_sign(self) -> Measured:
        """Make bare signatures of a token's length."""
        sign, _ = primitives(self._forge.key)
        data = self._signing_input()
        return _timed(lambda: _repeat(self._count, sign, data), self._count)

    def signature_verify(self) -> Measured:
        """Check bare signatures of a token's length."""
        sign, verify = primitives(self._forge.key)
        data = self._signing_input()
        signature = sign(data)
        return _timed(lambda: _repeat(self._count, verify, signature, data), self._count)

    def kept_bytes(self, warm_up: int) -> float:
        """Return the bytes of memory that one message leaves behind in the pipeline, its claim above all.

        Args:
            warm_up: rounds before, in which what is bounded grows to its bound.
        """
        pipeline, letters = guard(self._forge, PLACE), Refusals()
        tracemalloc.start()
        for _ in range(warm_up):
            judge_all(pipeline, self._sealed(), letters)
        before, _ = tracemalloc.get_traced_memory()
        judge_all(pipeline, self._signed, letters)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        letters.check()
        return (after - before) / self._count

    def _sealed(self) -> list[Message]:
        """Return a round of signed messages."""
        if not self._batched:
            return [self._signer.sign(self._plain) for _ in range(self._count)]
        batch = [self._plain] * BATCH
        return [found for _ in range(self._count // BATCH) for found in self._signer.sign_many(batch)]

    def _signing_input(self) -> bytes:
        """Return what the first token's signature covers."""
        token: Any = self._signed[0].headers[-1][1]
        return bytes(token.partition(b"~")[0].rpartition(b".")[0])


def delivered(message: Message, offset: int) -> Message:
    """Return a message as Kafka's consumer sees it."""
    return replace(message, origin=Origin(scope="bench", topic="bench", partition=0, offset=offset))


def judge_all(pipeline: Pipeline, messages: Iterable[Message], letters: Refusals) -> None:
    """Carry messages to their end, with a handler that does nothing."""
    for message in messages:
        run(pipeline.process(pipeline.receive(message), _nothing, letters))


def _nothing(_verified: object) -> None:
    """Handle a message."""


def primitives(key: Key) -> tuple[Callable[[bytes], bytes], Callable[[bytes, bytes], object]]:
    """Return how the libraries we use sign and verify with a key, nothing around it."""
    private, public = key.private, key.public
    if isinstance(private, ed25519.Ed25519PrivateKey) and isinstance(public, ed25519.Ed25519PublicKey):
        signed_by = public
        return ed25519_signer(private), lambda made, data: ed25519_holds(data, signed_by, made)
    if isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(public, ec.EllipticCurvePublicKey):
        scheme = ec.ECDSA(hashes.SHA384() if key.algorithm == "ES384" else hashes.SHA256())
        ours, theirs = private, public
        return lambda data: ours.sign(data, scheme), lambda made, data: theirs.verify(made, data, scheme)
    return _rsa(private, public, pss=key.algorithm == "PS256")


def _rsa(
    private: Any, public: Any, *, pss: bool
) -> tuple[Callable[[bytes], bytes], Callable[[bytes, bytes], object]]:
    """Return how RSA keys sign and verify."""
    digest = hashes.SHA256()
    pad = padding.PSS(mgf=padding.MGF1(digest), salt_length=32) if pss else padding.PKCS1v15()
    return lambda data: private.sign(data, pad, digest), lambda made, data: public.verify(made, data, pad, digest)


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
        rounds: of each.
        count: messages of a round.
        base_count: messages of a round in the cells of 1 KiB and five headers, which also get the bare signature.
        progress: told what is measured.
        enough: once it says so, no other round begins.
    """
    variants: list[Variant] = []
    forges: dict[str, Forge] = {}
    for cell in found:
        base = (cell.size, cell.headers) == (BODY_SIZE, HEADER_COUNT)
        forge = forges.setdefault(cell.kind, forges.get(cell.kind) or _forge(cell.kind))
        variants += Subject(cell, base_count if base else count, forge).variants(signature=base)
    return alternate(variants, rounds, progress=lambda name: progress(f"in process, {name}"), enough=enough)


def _forge(kind: str) -> Forge:
    """Return keys for a kind of cell."""
    return Forge(lifetime=LIFETIME, algorithm="EdDSA" if kind == BATCH_NAME else kind)


def microseconds(found: Rounds, name: str) -> float | None:
    """Return the median of a variant, microseconds of CPU a message, ``None`` where it failed."""
    rounds = found.measured.get(name)
    return None if not rounds else round(Spread.of(one.cpu_per_1000 * 1000 for one in rounds).median, 2)


def short(found: Rounds, kinds: Iterable[str] = (*ALGORITHMS, BATCH_NAME)) -> dict[str, dict[str, float | None]]:
    """Return the short form at 1 KiB and five headers; ``verify_us`` is the whole verdict."""
    told = {"sign_us": "sign", "verify_us": "verdict", "signature_sign_us": "signature_sign",
            "signature_verify_us": "signature_verify"}  # fmt: skip
    return {
        kind: {name: microseconds(found, Cell(kind=kind).name(operation)) for name, operation in told.items()}
        for kind in kinds
    }


def _timed(work: Callable[[], object], count: int) -> Measured:
    """Return how long one piece of work took."""
    watch = Stopwatch()
    watch.start()
    work()
    return watch.stop(count)


def _repeat(count: int, function: Callable[..., object], *arguments: bytes) -> None:
    """Call a function so often."""
    for _ in range(count):
        function(*arguments)
