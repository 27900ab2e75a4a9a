"""A memo: what it finds, what it forgets, and that its bytes are bounded whatever is looked up."""

from __future__ import annotations

import copy
import gc
import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from mqauth import Allow, Decision, MalformedMessage
from mqauth.wire import base64url, destination, jws
from mqauth.wire.memo import Memo, Recent, size_of
from tests.conftest import together


def counted() -> tuple[list[str], Memo[str, str]]:
    """Return what a memo's function was called with, and the memo, which has room for ten."""
    calls: list[str] = []
    return calls, Memo(
        lambda key: calls.append(key) or key.upper(), size=lambda _: 100, capacity=1000
    )


def test_when_it_is_full_all_is_forgotten() -> None:
    """The entry that has no room any more is the first of the next round, and the others are made anew."""
    calls, memo = counted()
    for number in range(10):
        assert memo[str(number)] == str(number)
    assert len(memo) == 10
    assert memo["next"] == "NEXT"
    assert set(memo) == {"next"}
    assert memo["0"] == "0"
    assert calls == [*map(str, range(10)), "next", "0"]


def test_an_entry_over_its_share_is_not_remembered() -> None:
    """An eighth of the capacity is kept, a byte more is not, and it makes nobody else go."""
    calls: list[int] = []
    memo = Memo[int, int](
        lambda key: calls.append(key) or key, size=lambda key: key, capacity=800
    )
    assert [memo[100], memo[101], memo[101], memo[100]] == [100, 101, 101, 100]
    assert calls == [100, 101, 101]
    assert not memo.charge(101)
    assert memo.charge(100)


def test_what_the_function_raises_is_not_remembered() -> None:
    """A refusal is worked out each time, so that refusals take no room."""
    calls: list[str] = []

    def refuse(key: str) -> str:
        calls.append(key)
        raise MalformedMessage(key)

    memo = Memo(refuse)
    for _ in range(2):
        with pytest.raises(MalformedMessage):
            memo["a"]
    assert (calls, len(memo), memo._held) == (["a", "a"], 0, 0)


def test_what_is_kept_again_counts_once() -> None:
    """A second value for a key changes neither the first one nor the bytes counted."""
    memo = Memo[str, int](capacity=1000)
    for value in (1, 2, 3):
        memo.keep("a", value, 100)
    assert (memo.get("a"), memo._held) == (1, 100)
    with pytest.raises(KeyError):
        memo["b"]


def test_bytes_kept_inside_a_value_count() -> None:
    """What a value charges for itself makes room like an entry of its own."""
    memo = Memo[str, int](capacity=1000)
    memo.keep("a", 1, 100)
    assert all(memo.charge(100) for _ in range(9))
    assert "a" in memo
    assert memo.charge(100)
    assert (len(memo), memo._held) == (0, 100)


def test_threads_keep_the_count() -> None:
    """Looked up from several threads at once, the bytes counted are those of what is held."""
    memo = Memo[int, int](lambda key: key, size=lambda key: 10 + key % 7, capacity=400)

    def look(shift: int) -> None:
        for number in range(2000):
            assert memo[(number * 7 + shift) % 90] == (number * 7 + shift) % 90

    together(look, range(4))
    assert memo._held == sum(10 + key % 7 for key in memo) <= 400


@pytest.mark.parametrize(
    "again",
    [lambda made: pickle.loads(pickle.dumps(made)), copy.deepcopy],  # noqa: S301
)
def test_what_has_a_memo_can_be_copied(again: Callable[[Any], Any]) -> None:
    """A policy that was used is copied and pickled: its memo is empty then, and asks the copy."""
    policy = Allow({"a": ["kafka:x"]})
    assert policy._decisions["i", "a", "kafka:x"] is Decision.ALLOW
    other = again(policy)
    assert (len(policy._decisions), len(other._decisions)) == (1, 0)
    assert other._decisions["i", "a", "kafka:x"] is Decision.ALLOW
    assert other._decisions._function.__self__ is other
    assert other._decisions._capacity == policy._decisions._capacity


def header(number: int) -> Any:
    """Return a token's first segment, as large as a hostile sender may make it, and its type."""
    kid = f"{number:0128d}"
    blanks = b" " * 3000
    raw = b'{%s"alg":"EdDSA","typ":"%s","kid":"%s"}' % (
        blanks,
        jws.TOKEN_TYPE.encode(),
        kid.encode(),
    )
    return base64url.encode(raw), jws.TOKEN_TYPE


ARGUMENTS: dict[str, tuple[Callable[[], Any], Callable[[int], Any]]] = {
    "destinations": (
        lambda: destination.parse.__self__,  # type: ignore[attr-defined]
        lambda n: f"kafka:{n}{'%F0%9F%98%80' * 150}",
    ),
    "topics": (lambda: destination.kafka.__self__, lambda n: f"{n}{chr(0x1F600) * 200}"),  # type: ignore[attr-defined]
    "routes": (lambda: destination._ROUTES, lambda n: (f"{n}", chr(0x1F600) * 200)),
    "headers": (lambda: jws._HEADERS, header),
    "decisions": (
        lambda: Allow({"a": ["kafka:#"]})._decisions,
        lambda n: ("i", "a", f"kafka:{n}{'a.' * 100}b"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_what_a_sender_chooses_is_bounded_in_bytes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments that are made to take as much as they can keep no more than the capacity."""
    find, argument = ARGUMENTS[name]
    memo, capacity = find(), 256 * 1024
    memo.clear()
    monkeypatch.setattr(memo, "_held", 0)
    monkeypatch.setattr(memo, "_capacity", capacity)
    gc.collect()
    tracemalloc.start()
    for number in range(600):
        memo[argument(number)]
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < len(memo) < 600
    assert held < capacity + 50_000
    memo.clear()


def test_a_key_is_counted_with_all_it_holds() -> None:
    """A tuple takes what its members take, and long text more than short."""
    assert size_of(("a", ("b",))) == size_of(("a", "b")) > size_of("a")
    assert size_of("a" * 1000) > 1000
    assert size_of((None, True, 5)) > size_of(())


def test_the_oldest_entries_are_forgotten() -> None:
    """The latest entries stay within the bound; what is kept again is the newest, and counts once."""
    recent = Recent[str, int](5, lambda _key, size: size)
    for key, size in (("a", 2), ("b", 2), ("a", 2), ("c", 2)):
        recent.keep(key, size)
    assert (list(recent), recent.held) == (["a", "c"], 4)
    assert (recent.drop("a"), recent.drop("a"), recent.held) == (2, None, 2)
    recent.keep("large", 9)
    assert list(recent) == ["large"]
    recent.clear()
    assert (len(recent), recent.held) == (0, 0)


def test_who_has_the_most_entries_loses_one() -> None:
    """Of several owners the one with the most entries loses its oldest; the others keep theirs."""
    recent = Recent[str, int](4, owner=lambda key: key[0])
    for key in ("b1", "a1", "a2", "a3", "a4"):
        recent.keep(key, 0)
    assert list(recent) == ["b1", "a2", "a3", "a4"]
    recent.drop("b1")
    recent.keep("c1", 0)
    recent.keep("a5", 0)
    assert list(recent) == ["a3", "a4", "c1", "a5"]
