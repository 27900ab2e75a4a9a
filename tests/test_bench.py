"""What the benchmarks of a client measure works before it is measured: tiny counts, no clock in any assertion."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature

from integration.benchmarks import flood, pages
from integration.benchmarks.client import contenders, identity, inprocess, run
from integration.benchmarks.client.contenders import Effort, Wrapper
from integration.benchmarks.client.inprocess import BATCH_NAME, PLACE, Cell, Operations
from integration.benchmarks.client.rounds import (
    Measured,
    Rounds,
    Variant,
    alternate,
    rates,
)
from integration.benchmarks.client.workload import (
    Refusals,
    RefusedError,
    Tally,
    Workload,
    guard,
)
from integration.documentation import ROOT
from mqauth.testing.forge import Forge
from mqauth.wire.keys import ALGORITHMS, Key

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from integration.benchmarks.rivals import (
        Celery,
        Handwritten,
        Joserfc,
        WrongMessageError,
    )

BODY = b'{"order": 1}'
NOTHING = Effort(rounds=1, publish=1, consume=1, paced=0)
TINY = run.Amount(
    cells=(Cell(kind="EdDSA"), Cell(kind="ES256"), Cell(kind=BATCH_NAME)), rounds=1, count=2, base_count=2,
    rabbitmq=NOTHING, kafka=NOTHING, kept=0, seconds=60,
)  # fmt: skip
FIGURES = {"sign_us", "verify_us", "signature_sign_us", "signature_verify_us"}


class Recorded:
    """A contender that notes what it was made of, in place of one of a broker."""

    def __init__(self, connections: object, forge: Forge) -> None:
        self.connections, self.forge = connections, forge
        self.name = "recorded"

    Signed: type[Recorded]
    Batched: type[Recorded]


Recorded.Signed = Recorded.Batched = Recorded


def test_the_identity_form_has_a_direct_one_of_its_size_beside_it() -> None:
    """Four contenders; the padding is what the identity form has more, and no token covers it."""
    plain = SimpleNamespace(workload=Workload(), address="a")
    made: list[Any] = [make(plain) for make in identity.makes(Recorded)]
    assert [one.name for one in made] == [
        "identity",
        "padded",
        "identity_batch",
        "padded_batch",
    ]
    for whole, padded, size in zip(made[::2], made[1::2], (1, 64), strict=True):
        assert whole.connections is plain
        assert padded.connections.address == "a"
        assert padded.connections.workload.padding_bytes == identity.more_bytes(size)
        message = padded.connections.workload.message("kafka:orders")
        signed = padded.forge.signer().sign(message)
        assert message.headers[-1][0] == "x-padding"
        assert padded.forge.verifier().open(signed).token.claims.mqa.hdr == tuple(
            f"header-{number}" for number in range(5)
        )


@pytest.fixture(scope="module")
def report() -> run.Report:
    """A report of a tiny run in process."""
    return run.measure(TINY)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_primitives_sign_and_verify(algorithm: str) -> None:
    """What is measured as the bare signature is one: it verifies, and not over other data."""
    sign, verify = inprocess.primitives(Key.generate(algorithm))
    signature = sign(BODY)
    assert verify(signature, BODY) in (True, None)
    with suppress(InvalidSignature):  # or it says so
        assert verify(signature, BODY + b"x") is False


@pytest.mark.parametrize("kind", ["EdDSA", BATCH_NAME])
def test_every_operation_runs(kind: str) -> None:
    """Each operation does all its messages, in batches whole ones."""
    operations = Operations(Cell(kind=kind, size=100, headers=0), 3)
    found = {
        variant.name: variant.run().messages
        for variant in operations.variants(signature=True)
    }
    count = 3 if kind == "EdDSA" else 64
    assert found == {
        f"{kind} 100 0 {operation}": count for operation in inprocess.OPERATIONS
    }


def test_refused_message_fails_the_round() -> None:
    """A benchmark that measured rejections would be fast and wrong: it fails."""
    forge, letters = Forge(), Refusals()
    message = Workload(size=64, headers=1).message(PLACE)
    inprocess.judge_all(guard(forge, PLACE), [forge.seal(message)], letters)
    letters.check()
    inprocess.judge_all(
        guard(forge, PLACE), [replace(forge.seal(message), body=b"changed")], letters
    )
    with pytest.raises(RefusedError, match="body_mismatch"):
        letters.check()


def test_tally_ends_at_the_last() -> None:
    """A round ends when the last message is handled, and each arrival is noted once by its number."""
    ended: list[int] = []
    tally = Tally(2, lambda: ended.append(tally.seen), work=1e-9, arrivals={})
    tally(Workload().body(0))
    assert ended == []
    tally(Workload().body(1))
    assert ended == [2]
    assert tally.arrivals.keys() == {0, 1}


class Contender:
    """A contender that writes down what it is asked."""

    def __init__(self, name: str, log: list[tuple[str, str, float]]) -> None:
        self.name = name
        self.heavy = name == "message"
        self._log = log

    def publish(self, count: int, /) -> Measured:
        return self._asked("publish", count)

    def consume(self, count: int, work: float, /) -> Measured:
        return self._asked(f"consume {work}", count)

    def paced(self, count: int, pace: float, /) -> Measured:
        return self._asked(f"paced {pace}", count)

    def added(self) -> float:
        return 12.34

    def close(self) -> None:
        self._log.append((self.name, "close", 0))

    def _asked(self, what: str, count: int) -> Measured:
        self._log.append((self.name, what, count))
        return Measured(messages=count, wall=1, cpu=1)


def test_contenders_are_compared_in_every_way() -> None:
    """Publish, consume with each handler, latency: all contenders in turn, fewer messages where each is signed."""
    log: list[tuple[str, str, float]] = []
    effort = Effort(rounds=1, publish=8, consume=32, paced=5, pace=100, paced_rounds=1)
    made = [Contender("bare", log), Contender("message", log)]
    found = contenders.compare_all(made, effort, works=(0.0, 1e-4))
    assert list(found.comparisons) == ["publish", "consume", "consume_100us", "paced"]
    assert found.added == {"bare": 12.3, "message": 12.3}
    assert list(dict.fromkeys(log)) == [
        ("bare", "publish", 8), ("message", "publish", 2),
        ("bare", "consume 0.0", 32), ("message", "consume 0.0", 8),
        ("bare", "consume 0.0001", 8), ("message", "consume 0.0001", 2),
        ("bare", "paced 100", 5), ("message", "paced 100", 5),
        ("bare", "close", 0), ("message", "close", 0),
    ]  # fmt: skip


def test_report_has_the_shape_programs_read(report: run.Report) -> None:
    """The short form has the four figures of every kind, all measured; the long form says what it ran on."""
    short = report.short()
    assert short.keys() == {"in_process"}
    assert short["in_process"].keys() == {"EdDSA", "ES256", BATCH_NAME}
    for cell in short["in_process"].values():
        assert cell.keys() == FIGURES
        assert all(figure > 0 for figure in cell.values())
    whole = json.loads(json.dumps(report.whole()))
    assert whole["short"] == json.loads(json.dumps(short))
    assert whole["packages"]["PyJWT"]
    assert report.failed() == {}


def test_tables_are_put_between_their_marks(report: run.Report) -> None:
    """A page keeps its text and gets new tables, but for those whose figures are not there."""
    found = report.whole()
    page = "before\n<!-- table machine -->\nold\n<!-- end -->\nafter\n"
    filled = pages.filled(page, found)
    assert re.fullmatch(
        r"before\n<!-- table machine -->\n.*Python .*\n<!-- end -->\nafter\n", filled
    )
    assert pages.filled(filled, found) == filled
    unmeasured = "<!-- table flood -->\nof another run\n<!-- end -->"
    assert pages.filled(unmeasured, found) == unmeasured
    with pytest.raises(KeyError):
        pages.filled("<!-- table nonsense -->\n<!-- end -->", found)


@pytest.mark.parametrize("page", ["performance.md", "sizing.md"])
def test_every_mark_names_a_table(page: str) -> None:
    """Each mark of the pages names a table, or a plot, that the command makes."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    marked = re.findall(r"<!-- table (.*) -->", text)
    assert marked
    assert {*marked} <= {*pages.tables()}
    assert text.count("<!-- end -->") == len(marked)


def test_forged_batch_tokens_leave_nothing_behind() -> None:
    """Each forged token costs a signature check and is refused; the honest batch's siblings are accepted still."""
    told = flood.flood(100, stretch=10)
    assert told["reasons"] == {"signature_invalid": 100 + 10}
    assert (told["tokens"], told["kept_bytes_a_token"] < 500) == (100, True)


# The benchmark's own arithmetic


def measured(rate: float, *, cpu: float = 0.5) -> Measured:
    return Measured(messages=100, wall=100 / rate, cpu=cpu)


def variant(name: str, log: list[str], figures: Iterator[float]) -> Variant:
    """Return a variant that logs its turns and has the rates of ``figures``."""

    def run() -> Measured:
        log.append(name)
        return measured(next(figures))

    return Variant(name, run)


def failing(error: Callable[[], Exception | None]) -> Variant:
    def run() -> Measured:
        raised = error()
        if raised is not None:
            raise raised
        return measured(1)

    return Variant("broken", run)


def test_variants_take_turns() -> None:
    """Every round has each variant once, in their order, and the rounds to warm up come first and do not count."""
    log: list[str] = []
    found = alternate([variant(name, log, count(1.0)) for name in "abc"], 2, warm_up=1)
    assert log == list("abcabcabc")
    assert {name: [round(one.rate) for one in rounds] for name, rounds in found.measured.items()} == {
        "a": [2, 3], "b": [2, 3], "c": [2, 3],
    }  # fmt: skip


def test_time_that_is_over_ends_the_rounds() -> None:
    """When time is over no round begins, yet every variant has one that counts."""
    log: list[str] = []
    alternate([variant(name, log, count(1.0)) for name in "ab"], 5, enough=lambda: True)
    assert log == list("abab")


def test_broken_variant_is_told_and_the_others_go_on() -> None:
    """A variant that raises twice in a row is out, with its reason; the others have all their rounds."""
    tried = count()
    found = alternate(
        [
            failing(lambda: ValueError(str(next(tried)))),
            Variant("good", lambda: measured(3)),
        ],
        2,
    )
    assert found.failed == {"broken": "ValueError: 1"}
    assert len(found.measured["good"]) == 2
    assert found.rate("broken") is None
    assert found.ratio("good", "broken") is None
    assert found.summary("good")["broken"] == {"failed": "ValueError: 1"}


def test_ratio_is_taken_within_each_round() -> None:
    """A ratio is between neighbours in time: a machine that slows down between rounds moves rates, not ratios."""
    found = Rounds(
        {
            "base": [measured(rate) for rate in (100, 10, 1000)],
            "ours": [measured(rate) for rate in (90, 8, 100)],
        },
        {},
    )
    ratio = found.ratio("ours", "base")
    assert ratio.as_list() == pytest.approx([0.45, 0.8, 0.85])
    assert found.rate("ours") == pytest.approx(90)


def test_short_form_has_rates_and_all_ratios() -> None:
    """The short form has the named rates, all others' ratios to the base, further pairs, null for failures."""
    found = Rounds(
        {"bare": [measured(100)], "a": [measured(50)], "b": [measured(25)]},
        {"c": "broken"},
    )
    assert rates(found, ("bare", "a", "c"), "bare", {"b/a": ("b", "a")}) == {
        "bare": 100.0, "a": 50.0, "c": None, "ratio": {"a": 0.5, "b": 0.25, "c": None, "b/a": 0.5},
    }  # fmt: skip


# The rivals of the benchmark do what they claim: they seal, open and refuse, so that their cost is a real one.


@pytest.mark.parametrize(
    ("wrapper", "error"),
    [
        (Handwritten, "InvalidSignatureError"),
        (Joserfc, "BadSignatureError"),
        (Celery, "SecurityError"),
    ],
)
def test_wrapper_refuses_what_others_seal(wrapper: type[Wrapper], error: str) -> None:
    """A rival checks signatures: what another key sealed is refused, so that its cost is that of a real check."""
    with pytest.raises(Exception) as refused:  # noqa: PT011 - its own library's
        wrapper().opener(PLACE)(*wrapper().seal(PLACE, BODY))
    assert refused.type.__name__ == error


@pytest.mark.parametrize("wrapper", [Handwritten, Joserfc])
def test_hand_written_wrapper_is_a_competent_one(wrapper: type[Wrapper]) -> None:
    """A token of another body or destination, or seen before, is refused."""
    made = wrapper()
    body, token = made.seal(PLACE, BODY)
    with pytest.raises(WrongMessageError, match="another message"):
        made.opener(PLACE)(b"changed", token)
    with pytest.raises(WrongMessageError, match="another message"):
        made.opener("kafka:other")(body, token)
    open_ = made.opener(PLACE)
    open_(body, token)
    with pytest.raises(WrongMessageError, match="seen before"):
        open_(body, token)
