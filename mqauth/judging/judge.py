"""The steps of a verdict, in their order, once for every broker and for both kinds of caller.

Theory of operation
===================

A message is accepted only if it passes every step below; the first step that fails decides. The order is part of
the contract (wire profile, section 8): cheap steps come first, and nothing that a sender wrote is looked up before
it is bounded, so that a forgery costs little and tells nothing about what a later step would have said.

===== =========================================================== ========================================
step  what must hold                                              where
===== =========================================================== ========================================
(-)   the destination is at ``enforce``, and nothing is exempt    ``Ladder.passes``
(0)   the delivery can be represented as a ``Message``            ``Verifier.open``
(1)   there is one token, and it is small                         ``Verifier.open``
(2)   the token has three canonical segments and a bounded kid    ``Verifier.open``
(3)   ``typ``, no other parameter, ``alg`` on the list            ``Verifier.open``
(4)   the claims parse strictly; a proof only behind a batch      ``Verifier.open``
(5)   the issuer is configured                                    ``Verifier.issuer``
(6)   the issuer has the key, not revoked, of that algorithm      ``Verifier.authenticate``
(7)   the signature holds; then the release, if there is one      ``Verifier.authenticate``, ``_released``
(8)   the audience is this consumer's                             ``Verifier.verify``
(9)   the times: of the key first, then of the token              ``Verifier.verify``
(10)  the key speaks for the subject                              ``Verifier.verify``
(11)  destination, record key, body and headers are as signed     ``Verifier.verify``
(12)  the policy lets this subject publish here                   ``Policy.decide``
(13)  nobody else has claimed the message                         ``ReplayStore.claim``
===== =========================================================== ========================================

A step passes; or it raises ``Rejection``, which is final and the message's fault; or it raises ``Unavailable``,
because keys, policy or store cannot be asked now. Then the verdict is deferred: the delivery stays at
``Step.JUDGE`` and takes the steps again later. So an outage of ours condemns no honest message.

In a rollout the first step is the rung (``mqauth.judging.ladder``). At ``off`` it is the only one. At ``observe``
whatever a step raises, and a duplicate, becomes an ``Unverified`` for a second handler.

Steps (0) to (4) and (8) to (11) are pure. Keys, policy and store are plug-ins, and any of them may be
asynchronous. So a verdict is a flow (``mqauth.flow``), but a plain call wherever nothing has to be awaited,
which is nearly always: ``prepare`` takes the steps up to (12) as one function, and returns a flow only if it has
to wait.

For example, ``orders-api`` publishes an order and the broker delivers it twice, the second time as a copy that
somebody else published:

1. The first delivery passes (0) to (12). ``prepare`` returns a claim of the token's id; the store has not seen it
   and says ``FRESH`` (13). The delivery goes on to ``Step.HANDLE`` and its handler runs.
2. The copy passes (0) to (12) just as well: it is the same bytes. At (13) the store says ``REPLAYED``, the
   delivery goes on to ``Step.RECORD`` with the reason ``replayed``, and its handler never runs.
3. If the copy had another body, (11) would say ``body_mismatch``, and the store would never be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import GeneratorType
from typing import Any, Final, Literal, TypeAlias, cast

from mqauth.clock import Clock, Randomness
from mqauth.errors import (
    Cause,
    Reason,
    Rejection,
    Unavailable,
    Verdict,
    refusing,
    require,
)
from mqauth.flow import OUR_FAULT, ColourError, Flow, answered, at_once, call
from mqauth.judging.delivery import Delivery, Step
from mqauth.judging.key_lookup import known, looked_up
from mqauth.judging.ladder import Ladder, would_be
from mqauth.judging.policy import (
    POLICY,
    Allow,
    Decision,
    Policy,
    decided,
    decision_of,
    on_the_spot,
)
from mqauth.judging.rollout import is_lenient
from mqauth.judging.verified import Verified, Would, scope_of
from mqauth.judging.verifier import Candidate, Verifier
from mqauth.letters.release import Release, open_release
from mqauth.replay.rules import (
    ClaimRequest,
    ClaimStatus,
    ReplayStore,
    batch_id,
    claim_id,
    first_seen,
    release_id,
)
from mqauth.wire.keys import KeySet, KeySource
from mqauth.wire.message import Message

Claim: TypeAlias = ClaimRequest | None
_OWNER_BYTES: Final = 12
_HELD_SECONDS: Final = 3600
STORE: Final = Cause.REPLAY_STORE_UNAVAILABLE
# Python 3.11 takes its time to look a member of an enum up
_FRESH: Final = ClaimStatus.FRESH
_ALLOW: Final = Decision.ALLOW
_JUDGE, _HANDLE = Step.JUDGE, Step.HANDLE


class Judge:
    """Takes the steps of a verdict, and claims the messages that are to be handled.

    Args:
        verifier: judges tokens.
        policy: decides who may publish where.
        replay: remembers which messages were claimed.
        scope: on whose behalf messages are handled; by default what the broker wrapper says.
        reread: ``"handle"``, or ``"duplicate"`` to settle without the handler what Kafka delivers again after it
            was done.
        lease: seconds a claim holds while its handler runs.
        ladder: the rungs of a rollout; ``None`` where everything is enforced.

    Attributes:
        handles_again: whether a record that is read again is handled again.
    """

    def __init__(
        self,
        *,
        verifier: Verifier,
        policy: Policy,
        replay: ReplayStore,
        scope: str | None,
        reread: Literal["handle", "duplicate"],
        lease: float,
        clock: Clock,
        randomness: Randomness,
        ladder: Ladder | None = None,
    ) -> None:
        self._verifier = verifier
        self._policy, self._decide = policy, on_the_spot(policy)
        self._is_local = isinstance(policy, Allow)
        self.ladder = ladder
        self._replay = replay
        self._scope = scope
        self.handles_again = reread == "handle"
        self._lease = lease
        self._clock = clock
        self._randomness = randomness
        self._retention = verifier.retention

    def scope_of(self, message: Message) -> str:
        """Return on whose behalf a message is handled: the consumer group or queue, unless it was configured."""
        return scope_of(message.origin, self._scope)

    def judge(self, delivery: Delivery) -> Flow[None]:
        """Reach a verdict, and move the delivery on to the step that follows from it.

        Raises:
            Unavailable: it cannot be reached now.
        """
        try:
            claim = self.prepare(delivery)
            claim = (yield from claim) if type(claim) is GeneratorType else claim
            if type(claim) is ClaimRequest:
                # from now on the store may hold the claim, whatever becomes of its answer
                delivery.claim = claim
                if self.ladder is None:
                    status = at_once(STORE, self._replay.claim, claim)  # (13)
                else:
                    status = yield from self._asked(delivery, claim)
                if type(status) is not ClaimStatus:
                    status = yield from answered(STORE, status)
                if status is _FRESH:
                    delivery.step = _HANDLE
                else:
                    self.conclude(delivery, claim, status)
            elif delivery.step is _JUDGE:
                self._move_on(delivery, (yield from self._claim_released(delivery)))
        except Exception as error:
            self._refuse(delivery, error)

    def prepare(
        self, delivery: Delivery, waited: KeySet | None = None
    ) -> Claim | Flow[Claim]:
        """Take steps (0) to (12), and return the claim to be made; ``conclude`` takes what the store said.

        Whoever judges many deliveries can so make their claims in one round trip.

        Args:
            delivery: to be judged.
            waited: the keys of its issuer, if they had to be waited for.

        Returns:
            The claim; ``None`` if there is nothing to claim, and for a released message, which ``judge`` judges.
            Where something has to be awaited, a flow that returns the same.

        Raises:
            Unavailable: the verdict cannot be reached now.
        """
        try:
            # the rung: below ``enforce`` or exempt, a message may need no verdict
            if (
                self.ladder is not None
                and waited is None
                and self.ladder.passes(delivery)
            ):
                return None
            # (0) to (4): the token is taken apart, and nothing in it is believed
            delivery.candidate = candidate = self._verifier.open(delivery.message)
            if candidate.shape.released:
                return None
            # (5): only a configured issuer's keys are asked for
            source = self._verifier.issuer(candidate.token).keys
            keys = _at_hand(source) if waited is None else waited
            if waited is None and (
                type(keys) is not KeySet or candidate.token.opened.kid not in keys.by_kid
            ):
                return self._keyed(delivery, candidate, source, keys)
            delivery.key_set = keys.version
            # (6) to (11): key and signature, then what is claimed, then the message itself
            delivery.verified = self._verifier.verify(
                delivery.message, candidate, keys, delivery.received
            )
            # (12): identity, so that no truthy answer of a broken policy passes for ALLOW
            at_hand = self.ladder is None or self._is_local or not is_lenient(delivery)
            decision = (
                at_once(POLICY, self._decide, delivery.verified) if at_hand else None
            )
            if decision is not _ALLOW:
                return self._decided(delivery, candidate, decision)
            return self._request(delivery, candidate)
        except Exception as error:
            self._refuse(delivery, error)
            return None

    def _keyed(
        self, delivery: Delivery, candidate: Candidate, source: KeySource, held: Any
    ) -> Flow[Claim]:
        """Wait for the keys of a token, and take the steps with them."""
        try:
            keys = yield from self._keys(delivery, candidate, source, held)
        except Exception as error:
            self._refuse(delivery, error)
            return None
        claim = self.prepare(delivery, keys)
        return (yield from claim) if type(claim) is GeneratorType else cast(Claim, claim)

    def _decided(
        self, delivery: Delivery, candidate: Candidate, decision: Any
    ) -> Flow[Claim]:
        """Wait for the decision of a policy, which may be a refusal already."""
        try:
            verified, ladder = cast(Verified, delivery.verified), self._below(delivery)
            if ladder is None or self._is_local:
                _permit((yield from decided(self._policy, verified, decision)))
            else:
                _permit(
                    (yield from ladder.policy.watch(decision_of(self._policy, verified)))
                )
            return self._request(delivery, candidate)
        except Exception as error:
            self._refuse(delivery, error)
            return None

    def conclude(
        self, delivery: Delivery, claim: ClaimRequest, status: ClaimStatus
    ) -> None:
        """Reach the verdict that follows from what the store said of a claim: the end of step (13).

        Raises:
            Unavailable: another delivery holds the claim.
        """
        if status is _FRESH:
            delivery.claim, delivery.step = claim, _HANDLE
            return
        delivery.claim = None
        try:
            self._move_on(delivery, self._claimed(delivery, claim, status))
        except Rejection as rejection:
            self._refuse(delivery, rejection)

    def _claim_released(self, delivery: Delivery) -> Flow[ClaimStatus]:
        """Take steps (5) to (13) of a message that a reviewer has released."""
        message, candidate, received = (
            delivery.message,
            cast(Candidate, delivery.candidate),
            delivery.received,
        )
        source = self._verifier.issuer(candidate.token).keys  # (5)
        keys = yield from self._keys(delivery, candidate, source, _at_hand(source))
        delivery.key_set = keys.version
        # (6), (7): before the release, so that a message no producer has signed never makes us ask for the keys of
        # a release authority
        self._verifier.authenticate(message, candidate.token, keys, received)
        release = delivery.release = yield from self._released(delivery)
        if release.scope != self.scope_of(message):
            return ClaimStatus.DUPLICATE
        delivery.verified = self._verifier.verify(
            message, candidate, keys, received, release
        )  # (8) to (11)
        if Reason.PRODUCER_FORBIDDEN not in release.waive:
            _permit((yield from decision_of(self._policy, delivery.verified)))  # (12)
        # (13): the release is claimed, and the message too unless ``replayed`` is waived. It does not matter which
        # copy of a released message comes first, so neither claim has a place. A release that is done makes a
        # duplicate, a message that is done a replay, and either that is held is waited for.
        claim = self._request(delivery, candidate)
        claim = replace(
            claim,
            place=None,
            redelivered=True,
            expires=max(claim.expires, float(release.exp + self._verifier.retention)),
        )
        released = replace(claim, id=release_id(release.iss, release.letter), index=None)
        status = yield from self._claim(delivery, released)
        if status is not _FRESH or Reason.REPLAYED in release.waive:
            return status
        delivery.release_claim = delivery.claim
        status = yield from self._claim(delivery, claim)
        if status is ClaimStatus.DUPLICATE:
            raise Rejection(
                Reason.REPLAYED, "the message was handled before, without this release"
            )
        return status

    def _released(self, delivery: Delivery) -> Flow[Release]:
        """Judge the release that a message carries; whatever is wrong with it is ``release_invalid``."""
        message, invalid = delivery.message, partial(Rejection, Reason.RELEASE_INVALID)
        opened = open_release(message)
        authorities = require(
            self._verifier.release, "no release authority is configured", invalid
        )
        source, kid = authorities.source(opened), opened.opened.kid
        keys = yield from known(_at_hand(source))
        if keys is None or keys.get(kid) is None:
            with refusing(Rejection, "the authority has no such key", invalid):
                keys = yield from looked_up(
                    source, kid, delivery.received, opened.release.iss
                )
        return authorities.verify(message, opened, keys, delivery.received)

    def _keys(
        self, delivery: Delivery, candidate: Candidate, source: KeySource, held: Any
    ) -> Flow[KeySet]:
        """Return the keys of the token's issuer, waiting for them if the token's key is not among those held."""
        kid, issuer = candidate.token.opened.kid, candidate.token.claims.iss
        keys = yield from known(held)
        if keys is None or keys.get(kid) is None:
            delivery.key_set = None if keys is None else keys.version
            looking = looked_up(source, kid, delivery.received, issuer)
            ladder = self._below(delivery)
            keys = (
                yield from looking
                if ladder is None
                else ladder.issuers[issuer].watch(looking)
            )
        return keys

    def draw_owners(self, deliveries: Sequence[Delivery]) -> None:
        """Give each delivery that has none the random owner it claims with; all are drawn in one call."""
        drawn, length = (
            self._randomness(_OWNER_BYTES * len(deliveries)).hex(),
            2 * _OWNER_BYTES,
        )
        for at, delivery in enumerate(deliveries):
            if delivery.owner is None:
                delivery.owner = drawn[at * length : (at + 1) * length]

    def _request(self, delivery: Delivery, candidate: Candidate) -> ClaimRequest:
        """Return the claim of a message that was verified and permitted."""
        if not candidate.learnt and delivery.release is None:
            # what is learnt saves time only: a fault in it must not cost an honest message
            with suppress(Exception):
                self._verifier.learn(candidate)
        origin, token, proof = delivery.message.origin, candidate.token, candidate.proof
        if delivery.owner is None:
            delivery.owner = self._randomness(_OWNER_BYTES).hex()
        claims, id = token.claims, token.id
        if not id:
            id = token.id = claim_id(claims.iss, claims.sub, claims.jti)
        index = None if proof is None else proof.place
        # kept past every copy that could still be accepted, those deferred beside it too, and past its lease
        held = self._clock.now() + (_HELD_SECONDS if delivery.deferred else self._lease)
        kept = float(claims.exp + self._retention)
        return ClaimRequest(
            self._scope or origin.scope or self.scope_of(delivery.message),
            id if index is None else batch_id(id, index),
            delivery.owner,
            origin.coordinates,
            origin.redelivered,
            self._lease,
            kept if kept > held else held,
            False,
            index,
        )

    def _claim(self, delivery: Delivery, claim: ClaimRequest) -> Flow[ClaimStatus]:
        return self._claimed(delivery, claim, (yield from self._asked(delivery, claim)))

    def _asked(self, delivery: Delivery, claim: ClaimRequest) -> Flow[Any]:
        """Return what the store says of a claim; below ``enforce`` it is asked with little patience."""
        asking, ladder = (
            call(self._replay.claim, claim, cause=STORE),
            self._below(delivery),
        )
        return (yield from asking if ladder is None else ladder.store.watch(asking))

    def _claimed(
        self, delivery: Delivery, claim: ClaimRequest, status: ClaimStatus
    ) -> ClaimStatus:
        """Return what a claim came to, and note it if the message is this delivery's now."""
        if status is ClaimStatus.REPLAYED:
            raise Rejection(Reason.REPLAYED, first_seen(self._replay, claim))
        if status is ClaimStatus.HELD:
            raise Unavailable(
                Cause.CLAIM_HELD, "an earlier delivery of it is still being handled"
            )
        if status is ClaimStatus.REREAD and not self.handles_again:
            return ClaimStatus.DUPLICATE
        if status is _FRESH or status is ClaimStatus.REREAD:
            delivery.claim = claim
        elif status is not ClaimStatus.DUPLICATE:
            raise Unavailable(STORE, "the store's answer is no claim status")
        return status

    def _below(self, delivery: Delivery) -> Ladder | None:
        """Return the ladder where a delivery stands below ``enforce``."""
        return self.ladder if is_lenient(delivery) else None

    def _move_on(self, delivery: Delivery, status: ClaimStatus) -> None:
        """Move a delivery on to the step that follows from a claim."""
        if status is not ClaimStatus.DUPLICATE:
            delivery.step = _HANDLE
        elif (ladder := self._below(delivery)) is not None:
            ladder.pass_on(
                delivery, Would(Verdict.DUPLICATE, detail="it was handled before")
            )
        else:
            delivery.verdict, delivery.step = Verdict.DUPLICATE, Step.RECORD

    def _refuse(self, delivery: Delivery, error: Exception) -> None:
        """Reject a delivery for what a step raised, and raise again what is out of reach; below, pass it on."""
        ladder = self._below(delivery)
        if isinstance(error, OUR_FAULT) and (
            ladder is None or not isinstance(error, Unavailable)
        ):
            raise error
        if not isinstance(error, Rejection | Unavailable):
            # nobody foresaw it: that ends no consumer
            error = Rejection(
                Reason.MESSAGE_MALFORMED, f"{type(error).__name__} while it was judged"
            )
        if ladder is not None:
            ladder.pass_on(delivery, would_be(error))
        elif isinstance(error, Rejection):
            # of a released message that was handled before, the release is claimed already, and is given back
            delivery.reject(
                error, Step.RECORD if delivery.claim is None else Step.RELEASE
            )


def _permit(decision: Decision) -> None:
    if decision is not _ALLOW:
        raise Rejection(
            Reason.PRODUCER_FORBIDDEN, "no rule lets this subject publish here"
        )


def _at_hand(source: KeySource) -> Any:
    """Return the keys that a source has, an awaitable if it is asynchronous; ``None`` if it has none yet."""
    try:
        return source.key_set()
    except ColourError:
        raise
    except Exception:
        return None
