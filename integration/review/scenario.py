"""Dead letters of eight kinds, reviewed to the last; every count is held, a difference is an error."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from integration.review.kills import acts
from integration.review.scene import FORGED, KINDS, Scene
from mqauth.audit.chain import verify_chain
from mqauth.errors import Reason
from mqauth.review import Filter, Session, judge


@dataclass(slots=True)
class Story:
    """What was counted on the way, in order, with the seconds each part took."""

    scene: Scene
    say: Callable[[str], None]
    counts: dict[str, Any] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    def note(self, part: str, count: Any) -> None:
        """Keep a count and tell it."""
        seconds, self._started = time.monotonic() - self._started, time.monotonic()
        self.counts[part] = count
        self.say(f"{self.scene.stage.name}: {part}: {count} ({seconds:.1f} s)")

    def play(self, each: int) -> None:
        """Review so many letters of each kind, and hold every count."""
        scene = self.scene
        scene.fill(each)
        self.note("rejected", scene.outcomes["rejected"])
        assert scene.outcomes == {"rejected": each * len(KINDS)}
        with scene.session() as found:
            self._look(found, each)
            self._act(found, each)
            self._account(found, each)
        self._handle(each)

    def _look(self, found: Session, each: int) -> None:
        """List, group and judge, before and after the missing key arrives."""
        scene = self.scene
        groups = scene.look(found, lambda index: {group.reason: group.count for group in index.groups()})
        self.note("groups", groups)
        assert groups == dict.fromkeys(KINDS, each)
        assert scene.look(found, lambda index: index.count(Filter(intact=True))) == each * len(KINDS)
        assert scene.ledger(found).difference == 0
        before = scene.look(found, lambda index: found.run(judge(index, scene.guard())))
        scene.keys.append(scene.forge.stranger)
        after = scene.look(found, lambda index: found.run(judge(index, scene.guard())))
        self.note("would pass, before and after the key arrives", (before["accepted"], after["accepted"]))
        assert before == dict.fromkeys(KINDS, each)
        assert after == Counter({kind: each for kind in KINDS if kind != "key_unknown"}) + Counter(accepted=each)

    def _act(self, found: Session, each: int) -> None:
        """Redrive what passes, release what has expired, refuse the rest, and discard it."""
        passing = self.scene.redrive(found, reason="key_unknown")
        self.note("redriven, nothing waived", passing.done)
        late = self.scene.redrive(found, Reason.EXPIRED, reason="expired")
        self.note("released, expired waived", late.done)
        assert (passing.done, passing.selected, late.done, late.selected) == (each,) * 4
        rest = self.scene.redrive(found, Reason.EXPIRED)
        self.note("refused", dict(rest.refused))
        assert rest.refused == Counter({kind: each for kind in (*FORGED, "producer_forbidden")})
        gone = found.act(self.scene.plan("discard"), self.scene.freeze(found))
        self.note("discarded", gone.done)
        assert (gone.done, gone.left) == (each * 6, 0)

    def _account(self, found: Session, each: int) -> None:
        """Hold the audit against the queue; every act is in its chain, once."""
        ledger = self.scene.ledger(found)
        self.note("account", {name: value for name, value in ledger.as_dict().items() if isinstance(value, int)})
        assert (ledger.rejected, ledger.open) == (each * len(KINDS), 0)
        assert (ledger.redriven, ledger.discarded, ledger.difference) == (each * 2, each * 6, 0)
        on_record = (acts(self.scene, "redriven"), acts(self.scene, "discarded"))
        self.note("acts on record, redriven and discarded", on_record)
        assert on_record == (each * 2, each * 6)
        assert all(verify_chain(path).intact for path in self.scene.audits)

    def _handle(self, each: int) -> None:
        """Let the consumer have what came back."""
        scene = self.scene
        scene.consume(each * 2)
        self.note("handled", scene.outcomes["accepted"])
        assert (scene.outcomes["accepted"], scene.outcomes["rejected"]) == (each * 2, each * len(KINDS)), (
            scene.why()
        )
        assert {verified.release.sub for verified in scene.handled if verified.release} == {"ada"}
        assert all(verified.release is not None for verified in scene.handled)
        assert Counter(bytes(verified.body or b"").split()[0] for verified in scene.handled) == {
            b"key_unknown": each, b"expired": each
        }  # fmt: skip
