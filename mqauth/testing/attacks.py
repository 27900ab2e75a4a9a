"""A pytest plugin that attacks a consumer of your own, and the list of attacks.

Load it by ``pytest_plugins = ["mqauth.testing.attacks"]`` in the root ``conftest.py``, inherit ``AttackSuite``,
and give two fixtures: ``target``, where attacks are published, and ``make_consumer``, which makes your consumer.
Every attack must end with its own reason, every honest message must be handled, and no attack may reach the
handler. The count is printed at the end of the session.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

import pytest

from mqauth.errors import Reason, Verdict
from mqauth.testing.attack_probe import ConsumerFactory, KeyGate, Probe, Tally, Target
from mqauth.testing.batchattacks import BATCH_ATTACKS
from mqauth.testing.batchforge import BatchForge
from mqauth.testing.claim_attacks import CLAIM_ATTACKS, with_header
from mqauth.testing.forge import Forge
from mqauth.testing.structure_attacks import STRUCTURE_ATTACKS
from mqauth.testing.token_attacks import ATTACKS, Attack, honest_message
from mqauth.wire.message import TOKEN_HEADER, Message, fold

__all__ = [
    "ALL_ATTACKS",
    "ATTACKS",
    "BATCH_ATTACKS",
    "CLAIM_ATTACKS",
    "STRUCTURE_ATTACKS",
    "Attack",
    "AttackSuite",
    "ConsumerFactory",
    "KeyGate",
    "Probe",
    "Tally",
    "Target",
    "honest_message",
]
ALL_ATTACKS: Final = (*ATTACKS, *STRUCTURE_ATTACKS, *CLAIM_ATTACKS, *BATCH_ATTACKS)
"""Every attack of a single message."""
COPIES: Final = 8
"""Copies of one message that race."""
_EVERY: Final = 10
_WARM: Final = 5
_TALLY: Final = pytest.StashKey[Tally]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    config.stash[_TALLY] = Tally()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the count, unless nothing was attacked."""
    tally = config.stash[_TALLY]
    if tally.attempts:
        terminalreporter.write_line(tally.line())


@pytest.fixture
def attack_tally(request: pytest.FixtureRequest) -> Tally:
    """Return the count of the session."""
    return request.config.stash[_TALLY]


class AttackSuite:
    """Every attack, against one consumer; each test's docstring is the promise.

    Attributes:
        identity: the names your settings trust, as ``Forge`` takes them: issuer, subject, audience and others.
        left_out: names of attacks that your settings admit on purpose; the count names them.
        other_reasons: reasons that your settings lead to, by the name of an attack.
        remembers: whether the replay store outlives a consumer. Without that, a restart lets copies through.
    """

    identity: ClassVar[Mapping[str, Any]] = {}
    left_out: ClassVar[frozenset[str]] = frozenset()
    other_reasons: ClassVar[Mapping[str, Reason]] = {}
    remembers: ClassVar[bool] = True

    @pytest.fixture
    def probe(self, target: Target, attack_tally: Tally, form: type[Forge]) -> Probe:
        """Return the parts for a consumer, with keys of its own."""
        return Probe(
            target, form(**({"lifetime": 600} | dict(self.identity))), attack_tally
        )

    @pytest.fixture
    def form(self) -> type[Forge]:
        """Return the form of tokens: one for each message."""
        return Forge

    @pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
    @pytest.mark.parametrize("form", [Forge, BatchForge], ids=["single", "batch"])
    def test_attacks(
        self, probe: Probe, make_consumer: ConsumerFactory, warm: bool
    ) -> None:
        """Every attack is rejected with its reason, honest messages between them are handled, and nothing else."""
        attacks, honest = self._mounted(probe), _honest(probe)
        with probe.running(make_consumer):
            if warm:
                _publish_honest(probe, honest[:_WARM])
                _wait_for(probe, honest[:_WARM])
            for at, (attack, message) in enumerate(attacks):
                probe.attack(attack.name, message)
                if at % _EVERY == _EVERY - 1:
                    _publish_honest(probe, [honest[_WARM + at // _EVERY]])
            _publish_honest(probe, [honest[-1]])
            used = (
                honest[0 if warm else _WARM : _WARM + len(attacks) // _EVERY]
                + honest[-1:]
            )
            _wait_for(probe, [*used, *(message for _, message in attacks)])
        expected = [(each.name, message, self._reason(each)) for each, message in attacks]
        _judge(probe, expected, used)
        _check_letters(probe, len(attacks))

    def test_copies(self, probe: Probe, make_consumer: ConsumerFactory) -> None:
        """Copies of a handled message, and copies with headers of transports added, are rejected as replayed."""
        (message,) = _sealed(probe, 1)
        copies = [
            message,
            with_header("x-death", "retry")(message),
            with_header("x-stream-offset", "7")(message),
        ]
        with probe.running(make_consumer):
            _publish_honest(probe, [message])
            _wait_for(probe, [message])
            for copy in copies:
                probe.attack("copy", copy)
            probe.wait(lambda: len(probe.outcomes(message)) > len(copies))
        _judge_copies(probe, message, len(copies))

    def test_race(self, probe: Probe, make_consumer: ConsumerFactory) -> None:
        """Of copies that are published at once, one is handled and the rest are rejected as replayed."""
        (message,) = _sealed(probe, 1)
        with probe.running(make_consumer):
            _publish_honest(probe, [message])
            for _ in range(COPIES):
                probe.attack("race", message)
            probe.wait(lambda: len(probe.outcomes(message)) > COPIES)
        _judge_copies(probe, message, COPIES)

    def test_ids_are_not_burnt(
        self, probe: Probe, make_consumer: ConsumerFactory
    ) -> None:
        """Forgeries that carry an honest message's id before it keep nobody from handling it."""
        plain, forge = (
            honest_message(probe.target.destination, 1, subject=probe.forge.subject),
            probe.forge,
        )
        jti = "an-id-that-the-attacker-guessed"
        honest = forge.seal(plain, claims={"jti": jti})
        forged = forge.seal(
            replace(plain, body=b"forged"),
            key=forge.stranger,
            claims={"jti": jti},
            header={"kid": forge.key.kid},
        )
        theirs = forge.seal(
            replace(plain, body=b"theirs"),
            key=forge.neighbour,
            claims={"jti": jti, "sub": forge.neighbour_subject},
        )
        expected = [
            ("burnt-id", forged, Reason.SIGNATURE_INVALID),
            ("burnt-id", theirs, Reason.PRODUCER_FORBIDDEN),
        ]
        with probe.running(make_consumer):
            for name, message, _ in expected:
                probe.attack(name, message)
            _publish_honest(probe, [honest])
            _wait_for(probe, [forged, theirs, honest])
        _judge(probe, expected, [honest])

    def test_unknown_keys_in_a_flood(
        self, probe: Probe, make_consumer: ConsumerFactory
    ) -> None:
        """Tokens under a hundred unknown kids condemn no honest message behind them."""
        plain = _plain(probe, 100)
        flood = [
            probe.forge.seal(
                each, key=probe.forge.stranger, header={"kid": f"kid-{number}"}
            )
            for number, each in enumerate(plain)
        ]
        honest = _sealed(probe, 3, first=200)
        with probe.running(make_consumer):
            for message in flood:
                probe.attack("unknown-key-flood", message)
            _publish_honest(probe, honest)
            _wait_for(probe, [*flood, *honest])
        _judge(
            probe,
            [("unknown-key-flood", message, Reason.KEY_UNKNOWN) for message in flood],
            honest,
        )

    def test_keys_out_of_reach(
        self, probe: Probe, make_consumer: ConsumerFactory
    ) -> None:
        """While the issuer's keys are out of reach nothing is decided; once they are back everything is."""
        (honest,), (plain,) = _sealed(probe, 1), _plain(probe, 1, first=2)
        forged = probe.forge.seal(
            plain, key=probe.forge.stranger, header={"kid": probe.forge.key.kid}
        )
        probe.gate.open = False
        with probe.running(make_consumer):
            _publish_honest(probe, [honest])
            probe.attack("in-an-outage", forged)
            probe.wait(
                lambda: probe.deferrals.total() > 0 or bool(probe.outcomes(honest))
            )
            early = [*probe.outcomes(honest), *probe.outcomes(forged)]
            probe.gate.reopen()
            _wait_for(probe, [honest, forged])
        if early or not probe.deferrals:
            pytest.fail(
                f"without keys nothing can be decided, and this was: {_said(early)}"
            )
        _judge(probe, [("in-an-outage", forged, Reason.SIGNATURE_INVALID)], [honest])

    def test_dead_letters_out_of_reach(
        self, probe: Probe, make_consumer: ConsumerFactory
    ) -> None:
        """While dead letters cannot be written no rejected message is settled; later its letter is there."""
        target: Any = probe.target
        if not hasattr(target, "remove_dead_letters"):
            probe.tally.left_out.add("letter-refused")
            return
        (message,) = _plain(probe, 1)
        target.remove_dead_letters()
        with probe.running(make_consumer):
            probe.attack("letter-refused", message)
            probe.wait(
                lambda: probe.deferrals.total() > 0 or bool(probe.outcomes(message))
            )
            early = probe.outcomes(message)
            target.restore_dead_letters()
            _wait_for(probe, [message])
        if early:
            pytest.fail(
                f"its dead letter cannot have been written, and it was settled: {_said(early)}"
            )
        _judge(probe, [("letter-refused", message, Reason.TOKEN_MISSING)], [])
        _check_letters(probe, 1)

    def test_copy_after_a_restart(
        self, probe: Probe, make_consumer: ConsumerFactory
    ) -> None:
        """A copy that comes after a restart of the consumer is rejected as replayed."""
        if not self.remembers:
            probe.tally.left_out.add("copy-after-a-restart")
            return
        (message,) = _sealed(probe, 1)
        with probe.running(make_consumer):
            _publish_honest(probe, [message])
            _wait_for(probe, [message])
        with probe.running(make_consumer):
            probe.attack("copy-after-a-restart", message)
            probe.wait(lambda: len(probe.outcomes(message)) > 1)
        _judge_copies(probe, message, 1)

    def _mounted(self, probe: Probe) -> list[tuple[Attack, Message]]:
        """Return every attack that fits, each on a message of its own."""
        fitting = [each for each in ALL_ATTACKS if each.fits(probe.target.destination)]
        probe.tally.left_out |= {each.name for each in fitting} & self.left_out
        wanted = [each for each in fitting if each.name not in self.left_out]
        plain = _plain(probe, len(wanted), first=10_000)
        return [
            (each, each.mount(probe.forge, message))
            for each, message in zip(wanted, plain, strict=True)
        ]

    def _reason(self, attack: Attack) -> Reason:
        return self.other_reasons.get(attack.name, attack.reason)


def _plain(probe: Probe, count: int, *, first: int = 1) -> list[Message]:
    forge, destination = probe.forge, probe.target.destination
    return [
        honest_message(destination, first + number, subject=forge.subject)
        for number in range(count)
    ]


def _sealed(probe: Probe, count: int, *, first: int = 1) -> list[Message]:
    return [probe.forge.seal(message) for message in _plain(probe, count, first=first)]


def _honest(probe: Probe) -> list[Message]:
    """Return as many honest messages as are sent beside all attacks."""
    return _sealed(probe, _WARM + len(ALL_ATTACKS) // _EVERY + 1)


def _publish_honest(probe: Probe, messages: Iterable[Message]) -> None:
    for message in messages:
        probe.honest(message)


def _wait_for(probe: Probe, messages: list[Message]) -> None:
    """Wait until each of the messages was decided, or a minute is over."""
    probe.wait(lambda: all(probe.outcomes(message) for message in messages))


def _judge(
    probe: Probe, expected: list[tuple[str, Message, Reason]], honest: list[Message]
) -> None:
    """Count what came of attacks and honest messages, and fail if anything is not as it must be."""
    tally, faults = probe.tally, []
    for name, message, reason in expected:
        outcomes = probe.outcomes(message)
        if [(each.verdict, each.reason) for each in outcomes] == [
            (Verdict.REJECTED, reason)
        ]:
            continue
        let_in = any(each.verdict is not Verdict.REJECTED for each in outcomes)
        tally.accepted += let_in
        tally.other += not let_in
        faults.append(f"{name}: must be rejected, {reason.value}; was {_said(outcomes)}")
    for message in honest:
        outcomes = probe.outcomes(message)
        if [each.verdict for each in outcomes] != [Verdict.ACCEPTED]:
            tally.condemned += 1
            faults.append(f"an honest message: must be accepted; was {_said(outcomes)}")
    _finish(probe, faults)


def _check_letters(probe: Probe, count: int) -> None:
    """Fail unless each attack has its dead letter, and none of these has a token; where the target can tell."""
    if not hasattr(probe.target, "letters"):
        probe.tally.left_out.add("letters")
        return
    target: Any = probe.target
    letters = target.letters()
    leaking = [
        each
        for each in letters
        if any(fold(name) == TOKEN_HEADER for name, _ in each.headers)
    ]
    if len(letters) != count or leaking:
        pytest.fail(
            f"{count} attacks have {len(letters)} dead letters, {len(leaking)} of them with a token"
        )


def _judge_copies(probe: Probe, message: Message, copies: int) -> None:
    """Count what came of an honest message and its copies: one is accepted, all others are rejected."""
    outcomes = probe.outcomes(message)
    good = [each for each in outcomes if each.verdict is Verdict.ACCEPTED]
    replayed = [each for each in outcomes if each.reason is Reason.REPLAYED]
    probe.tally.accepted += max(0, len(good) - 1)
    probe.tally.condemned += not good
    faults = (
        []
        if (len(good), len(replayed)) == (1, copies)
        else [
            f"a message and {copies} copies: one must be accepted, the rest replayed; was {_said(outcomes)}"
        ]
    )
    probe.tally.other += len(outcomes) - len(good) - len(replayed)
    _finish(probe, faults)


def _finish(probe: Probe, faults: list[str]) -> None:
    calls = probe.unexplained_calls()
    probe.tally.calls += calls
    if calls:
        faults.append(
            f"the handler was called {calls} times for what no honest producer sent"
        )
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def _said(outcomes: list[Any]) -> str:
    """Return verdicts and reasons for people."""
    verdicts = [f"{each.verdict.value} {each.reason or ''}".strip() for each in outcomes]
    return ", ".join(verdicts) or "not decided"
