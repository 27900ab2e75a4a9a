"""A review session: the rules of what a reviewer may do, once for ``mqauth dlq`` and for the console."""

from __future__ import annotations

import ast
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mqauth import (
    AuditFile,
    Cause,
    ConfigurationError,
    Key,
    KeySet,
    Reason,
    Unavailable,
    flow,
)
from mqauth.audit.chain import verify_chain
from mqauth.letters.authorities import Authority, ReleaseAuthorities
from mqauth.review import (
    Account,
    Index,
    Plan,
    Session,
    SharedAuditFile,
    reviewers_releaser,
)
from mqauth.testing import FakeClock, Forge
from tests.conftest import RABBITMQ, together
from tests.test_auditfile import record
from tests.test_review import REVIEW, WHY, Bureau

PACKAGE = Path(__file__).parent.parent / "mqauth"
FLOWS = frozenset(("account", "act", "judge", "rehearse"))
"""Functions of the review that a session calls; whoever calls them too may make rules of their own."""


@pytest.fixture
def bureau(clock: FakeClock, forge: Forge) -> Bureau:
    """A bureau with two expired messages and one without token among its dead letters."""
    made = Bureau(clock, forge, RABBITMQ)
    late = [forge.seal(made.message(b"late %d" % number)) for number in range(2)]
    clock.advance(7200)
    made.send(*late, made.message(b"bare"))
    return made


def session(bureau: Bureau, **changes: Any) -> Session:
    """Return a session that can do everything, but for what is changed."""
    able: dict[str, Any] = {
        "guard": bureau.guard, "releaser": lambda name: bureau.releaser, "audit": bureau.audit,
        "clock": bureau.clock,
    }  # fmt: skip
    return Session(bureau.box, flow.run, **(able | changes))


def plan(act: str = "redrive", **changes: Any) -> Plan:
    """Return a plan on all letters."""
    return Plan(
        **(
            {
                "act": act,
                "reason": WHY,
                "waive": frozenset([Reason.EXPIRED]),
                "reviewer": "ada",
            }
            | changes
        )
    )


def carried_out(found: Session, wanted: Plan) -> tuple[Counter[str], Account, list[int]]:
    """Rehearse a plan and carry it out; return what was rehearsed, the account, and the progress."""
    seen: list[int] = []
    with Index(found.clock.now()) as index:
        found.survey(index)
        selection, counts = found.rehearse(index, wanted)
    done = found.act(
        wanted, selection, cancelled=threading.Event(),
        progress=seen.append,
    )  # fmt: skip
    return counts, done, seen


@pytest.mark.parametrize(
    ("missing", "able"),
    [
        ({}, {"redrive", "discard"}), ({"guard": None}, {"discard"}), ({"releaser": None}, {"discard"}),
        ({"audit": None}, set()),
    ],
)  # fmt: skip
def test_a_session_acts_only_with_what_the_act_needs(
    missing: dict[str, Any], able: set[str], bureau: Bureau
) -> None:
    """A redrive needs pipeline, key and audit, a discard the audit; else it is refused and no letter touched."""
    found = session(bureau, **missing)
    assert ({"redrive"} if found.can_redrive else set()) | (
        {"discard"} if found.audit else set()
    ) == able
    for act in {"redrive", "discard"} - able:
        with pytest.raises(ConfigurationError):
            found.check(plan(act))
        with pytest.raises(ConfigurationError):
            carried_out(found, plan(act))
    for act in able:
        found.check(plan(act))
    assert len(bureau.letters()) == 3


def test_without_a_pipeline_nothing_is_judged(bureau: Bureau) -> None:
    """Judging letters, or one letter, without the consumer's configuration is an error that names the option."""
    found = session(bureau, guard=None)
    with Index(found.clock.now()) as index:
        found.survey(index)
        with pytest.raises(ConfigurationError, match="--config"):
            found.judge(index)
        with pytest.raises(ConfigurationError, match="--config"):
            found.verdict(index.reading(1))
    with Index(bureau.clock.now()) as index:
        session(bureau).survey(index)
        assert session(bureau).judge(index) == {"expired": 2, "token_missing": 1}
        assert session(bureau).verdict(index.reading(1)) == "expired"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reason": ""}, "a reason is required"), ({"reason": "  "}, "a reason is required"),
        ({"reason": "two\nlines"}, "a reason is required"),
        ({"waive": frozenset([Reason.SIGNATURE_INVALID])}, "a release may waive"),
        ({"act": "burn"}, "an act must be"),
        ({"rate": 0}, "rate must be above 0"), ({"reviewer": ""}, "a reviewer must be text"),
    ],
)  # fmt: skip
def test_a_plan_that_nobody_may_have_is_refused(
    changes: dict[str, Any], said: str
) -> None:
    """A plan has a known act, a reason of one line, a rate and a reviewer, and waives only what a release may."""
    with pytest.raises(ConfigurationError, match=said):
        plan(**changes)


def trusting(bureau: Bureau, *issuers: str) -> Any:
    """Let the bureau's pipeline trust these release authorities, and return it."""
    authority = Authority(keys=KeySet([Key.generate().public_only]), waive=frozenset())
    release = ReleaseAuthorities(dict.fromkeys(issuers, authority)) if issuers else None
    bureau.guard.verifier = bureau.forge.verifier(release=release)
    return bureau.guard


def test_a_waiver_that_the_consumer_does_not_know_is_refused(bureau: Bureau) -> None:
    """Before a letter is looked at: no release with it would be accepted."""
    found = session(bureau, guard=trusting(bureau, REVIEW))
    with (
        Index(found.clock.now()) as index,
        pytest.raises(ConfigurationError, match="lets a release waive nothing"),
    ):
        found.rehearse(index, plan())


@pytest.mark.parametrize(
    ("issuers", "authority", "said"),
    [
        ((), None, "accepts no release"),
        ((REVIEW, "https://other.example"), None, "--authority: required"),
    ],
)
def test_whose_releases_they_are_is_clear(
    issuers: tuple[str, ...], authority: str | None, said: str, bureau: Bureau
) -> None:
    """A pipeline that trusts nobody, and one that trusts several while none is named, are errors."""
    with pytest.raises(ConfigurationError, match=said):
        reviewers_releaser(
            trusting(bureau, *issuers), Key.generate, authority=authority, lifetime=60
        )


def test_the_key_is_read_for_each_releaser(bureau: Bureau) -> None:
    """A console that runs through a rotation signs with the key of now, as the reviewer who acts now."""
    keys = [Key.generate(subjects=["ada"]), Key.generate(subjects=["bob"])]
    make = reviewers_releaser(
        trusting(bureau, REVIEW), iter(keys).__next__, authority=None, lifetime=60
    )
    assert [make("ada").reviewer, make("bob").reviewer] == ["ada", "bob"]
    with pytest.raises(ConfigurationError, match="does not speak for bob, but for ada"):
        reviewers_releaser(bureau.guard, lambda: keys[0], authority=None, lifetime=60)(
            "bob"
        )


def test_a_shared_file_has_one_chain(tmp_path: Path) -> None:
    """Two writers of a shared file take turns, and their records stand in one chain."""
    path = tmp_path / "reviewer.jsonl"
    writers = [SharedAuditFile(path, patience=600) for _ in range(2)]
    together(
        lambda writer: [writer.write(record(number)) for number in range(20)], writers
    )
    found = verify_chain(path)
    assert (found.intact, found.records) == (True, 40)


def test_a_shared_file_waits_for_a_bounded_time(tmp_path: Path) -> None:
    """A file that another process keeps is refused at the start, and is an outage of the audit later."""
    path = tmp_path / "reviewer.jsonl"
    shared = SharedAuditFile(path, patience=0)
    with AuditFile(path):
        with pytest.raises(ConfigurationError, match="another process writes"):
            SharedAuditFile(path, patience=0)
        with pytest.raises(Unavailable, match="another process writes") as raised:
            shared.write(record())
    assert raised.value.cause is Cause.AUDIT_UNAVAILABLE
    shared.write(record())
    assert verify_chain(path).records == 1


def named(source: str) -> set[str]:
    """Return the functions of the review that a module takes from it, under whatever name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "mqauth.review"
        ):
            found |= {alias.name for alias in node.names}
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "review"
        ):
            found.add(node.attr)
    return found & FLOWS


@pytest.mark.parametrize(
    "path",
    [*PACKAGE.glob("cli/*.py"), *PACKAGE.glob("console/*.py")],
    ids=lambda path: path.stem,
)
def test_neither_command_nor_console_goes_around_the_session(path: Path) -> None:
    """What acts and judges is called by the session alone: a rule cannot stand in one of the two."""
    assert named(path.read_text("utf-8")) == set()


@pytest.mark.parametrize(
    "source",
    [
        "from mqauth.review import act as go",
        "from mqauth.review.letterbox import judge",
        "review.act(box)",
    ],
)
def test_a_way_around_the_session_is_found(source: str) -> None:
    """An import of such a function, and its use through the room, makes the test red."""
    assert len(named(source)) == 1
