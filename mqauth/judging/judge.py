"""Steps 1 to 13 of a verdict, in their order, once for every broker and both colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import GeneratorType
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

from mqauth.clock import Clock, Randomness
from mqauth.errors import Cause, Reason, Rejection, Unavailable
from mqauth.flow import OUR_FAULT, ColourError, Flow, answered, asked, at_once, either, guarded
from mqauth.judging.candidate import Candidate
from mqauth.judging.delivery import Delivery, Step, Verdict
from mqauth.judging.policy import Decision, Policy
from mqauth.judging.verifier import Verifier
from mqauth.letters.release import Release, open_release
from mqauth.replay.rules import ClaimRequest, ClaimStatus, ReplayStore, batch_id, claim_id, release_id
from mqauth.wire.keys import KeySet, KeySource
from mqauth.wire.message import Message

R = TypeVar("R")
Wish: TypeAlias = ClaimRequest | None
_OWNER_BYTES: Final = 12
_HELD_SECONDS: Final = 3600
_STORE: Final = Cause.REPLAY_STORE_UNAVAILABLE
_KEYS: Final = Cause.KEYS_UNAVAILABLE
_POLICY: Final = Cause.POLICY_UNAVAILABLE
_FRESH: Final = ClaimStatus.FRESH
_ALLOW: Final = Decision.ALLOW
_JUDGE, _HANDLE = Step.JUDGE, Step.HANDLE  # Python 3.11 takes its time to look a member up


class Judge:
    """Reaches verdicts, and claims what is to be handled.

    Args:
        verifier: judges tokens.
        policy: who may publish where.
        replay: remembers what was claimed.
        scope: on whose behalf messages are handled; by default what the broker wrapper says.
        reread: ``"handle"``, or settle as a duplicate what Kafka delivers again after it was done.
        lease: seconds a claim holds while its handler runs.
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
    ) -> None:
        self._verifier = verifier
        self._policy = policy
        self._replay = replay
        self._scope = scope
        self._reread = reread
        self._lease = lease
        self._clock = clock
        self._randomness = randomness
        self._retention = verifier.retention

    def scope_of(self, message: Message) -> str:
        """Return on whose behalf a message is handled."""
        return self._scope or message.origin.scope or message.origin.queue or "default"

    def judge(self, delivery: Delivery) -> Flow[None]:
        """Reach a verdict and move on to the step that follows from it.

        Raises:
            Unavailable: it cannot be reached now.
        """
        wish = self.wish(delivery)
        if type(wish) is GeneratorType:
            wish = yield from wish
        if type(wish) is ClaimRequest:
            delivery.claim = wish  # from now on the store may hold it, whatever becomes of its answer
            status = at_once(_STORE, self._replay.claim, wish)
            if type(status) is not ClaimStatus:
                status = yield from answered(_STORE, status)
            if status is _FRESH:
                delivery.step = _HANDLE
            else:
                self.answer(delivery, wish, status)
        elif delivery.step is _JUDGE:
            yield from self._judge_released(delivery)

    def wish(self, delivery: Delivery, waited: KeySet | None = None) -> Wish | Flow[Wish]:
        """Take steps 1 to 12, for who makes many claims together and brings what they found to ``answer``.

        Args:
            delivery: to be judged.
            waited: the keys of its issuer, where they were waited for.

        Returns:
            The wish; ``None`` where there is a verdict, and for a released message, which is judged in its turn.
            Where something is to be awaited, a flow that returns it.

        Raises:
            Unavailable: the verdict cannot be reached now.
        """
        try:
            delivery.candidate = candidate = self._verifier.open(delivery.message)  # 1 to 4
            if candidate.shape.released:
                return None
            source = self._verifier.issuer(candidate.token.claims).keys  # 5
            keys = _at_hand(source) if waited is None else waited
            if waited is None and (type(keys) is not KeySet or candidate.token.opened.kid not in keys.by_kid):
                return self._keyed(delivery, candidate, source, keys)
            delivery.key_set = keys.version
            delivery.verified = self._verifier.verify(  # 6 to 11
                delivery.message, candidate, keys, delivery.received
            )
            decision = at_once(_POLICY, self._policy.decide, delivery.verified)  # 12
            if decision is not _ALLOW:
                return self._decided(delivery, candidate, decision)
            return self._request(delivery, candidate)
        except Exception as error:
            _refuse(delivery, error)
            return None

    def _keyed(self, delivery: Delivery, candidate: Candidate, source: KeySource, at_hand: Any) -> Flow[Wish]:
        """Wait for the keys of a token, and take the steps with them."""
        try:
            keys = yield from self._keys(delivery, candidate, source, at_hand)
        except Exception as error:
            _refuse(delivery, error)
            return None
        wish = self.wish(delivery, keys)
        return (yield from wish) if type(wish) is GeneratorType else cast(Wish, wish)

    def _decided(self, delivery: Delivery, candidate: Candidate, decision: Any) -> Flow[Wish]:
        """Wait for a policy's decision."""
        try:
            _permit((yield from answered(_POLICY, decision)))
            return self._request(delivery, candidate)
        except Exception as error:
            _refuse(delivery, error)
            return None

    def answer(self, delivery: Delivery, wish: ClaimRequest, status: ClaimStatus) -> None:
        """Reach the verdict that follows from a claim: step 13.

        Raises:
            Unavailable: another delivery holds it.
        """
        if status is _FRESH:
            delivery.claim, delivery.step = wish, _HANDLE
            return
        delivery.claim = None
        try:
            _conclude(delivery, self._claimed(delivery, wish, status))
        except Rejection as rejection:
            delivery.reject(rejection, Step.RECORD)

    def _judge_released(self, delivery: Delivery) -> Flow[None]:
        """Judge a released message from step 5 on."""
        try:
            _conclude(delivery, (yield from self._claim_released(delivery)))
        except Rejection as rejection:
            delivery.reject(rejection, Step.RECORD)

    def _claim_released(self, delivery: Delivery) -> Flow[ClaimStatus]:
        """Take steps 5 to 13; the release itself is judged once the producer's signature was found good.

        So a message that no producer has signed never asks for an authority's keys. Released to another scope it
        ends there.
        """
        message, candidate, received = delivery.message, cast(Candidate, delivery.candidate), delivery.received
        source = self._verifier.issuer(candidate.token.claims).keys  # 5
        keys = yield from self._keys(delivery, candidate, source, _at_hand(source))
        delivery.key_set = keys.version
        _total(self._verifier.authenticate, message, candidate.token, keys, received)  # 6, 7
        release = delivery.release = yield from self._released(delivery)
        if release.scope != self.scope_of(message):
            return ClaimStatus.DUPLICATE
        verified = _total(self._verifier.verify, message, candidate, keys, received, release)  # 6 to 11
        delivery.verified = verified
        if Reason.PRODUCER_FORBIDDEN not in release.waive:
            _permit((yield from asked(_POLICY, self._policy.decide, verified)))
        wish = self._request(delivery, candidate)
        return (yield from self._claim_release(delivery, wish, release))

    def _released(self, delivery: Delivery) -> Flow[Release]:
        """Judge the release a message carries; whatever is wrong with it is ``release_invalid``."""
        message, authorities = delivery.message, self._verifier.release
        found = _total(open_release, message)
        if authorities is None:
            raise Rejection(Reason.RELEASE_INVALID, "no release authority is configured")
        source, kid = authorities.source(found), found.opened.kid
        keys = yield from _known(_at_hand(source))
        if keys is None or keys.get(kid) is None:
            try:
                keys = yield from _looked_up(source, kid, delivery.received, found.release.iss)
            except Rejection as error:
                raise Rejection(Reason.RELEASE_INVALID, "the authority has no such key") from error
        return _total(authorities.verify, message, found, keys, delivery.received)

    def _keys(self, delivery: Delivery, candidate: Candidate, source: KeySource, at_hand: Any) -> Flow[KeySet]:
        """Return the keys of the token's issuer, which are waited for where they lack the token's.

        Args:
            delivery: of the token.
            candidate: the token.
            source: of its issuer's keys.
            at_hand: what ``_at_hand`` returned of it.
        """
        kid = candidate.token.opened.kid
        keys = yield from _known(at_hand)
        if keys is None or keys.get(kid) is None:
            delivery.key_set = None if keys is None else keys.version
            keys = yield from _looked_up(source, kid, delivery.received, candidate.token.claims.iss)
        return keys

    def name_owners(self, deliveries: Sequence[Delivery]) -> None:
        """Give each delivery the nonce it claims with, drawn at once; one it has it keeps."""
        drawn, length = self._randomness(_OWNER_BYTES * len(deliveries)).hex(), 2 * _OWNER_BYTES
        for at, delivery in enumerate(deliveries):
            if delivery.owner is None:
                delivery.owner = drawn[at * length : (at + 1) * length]

    def _request(self, delivery: Delivery, candidate: Candidate) -> ClaimRequest:
        """Return the claim of a message that was verified and permitted; its owner is one for ever.

        It is kept past every copy that may be accepted, those deferred beside it too, and past its lease.
        """
        if not candidate.learnt and delivery.release is None:
            with suppress(Exception):  # what is learnt saves time, and must cost no consumer
                self._verifier.learn(candidate)
        origin, token, proof = delivery.message.origin, candidate.token, candidate.proof
        if delivery.owner is None:
            delivery.owner = self._randomness(_OWNER_BYTES).hex()
        claims, found = token.claims, token.id
        if not found:
            found = token.id = claim_id(claims.iss, claims.sub, claims.jti)
        index = None if proof is None else proof.place
        held = self._clock.now() + (_HELD_SECONDS if delivery.deferred else self._lease)
        kept = float(claims.exp + self._retention)
        return ClaimRequest(
            self._scope or origin.scope or self.scope_of(delivery.message),
            found if index is None else batch_id(found, index),
            delivery.owner,
            origin.coordinates,
            origin.redelivered,
            self._lease,
            kept if kept > held else held,
            False,
            index,
        )

    def _claim(self, delivery: Delivery, wish: ClaimRequest) -> Flow[ClaimStatus]:
        """Claim a message for this delivery."""
        status: ClaimStatus = yield from asked(_STORE, self._replay.claim, wish)
        return self._claimed(delivery, wish, status)

    def _claim_release(self, delivery: Delivery, wish: ClaimRequest, release: Release) -> Flow[ClaimStatus]:
        """Claim the release, and the message too unless ``replayed`` is waived.

        Which copy of a redriven message comes first does not matter, so neither claim has a place: done is
        a duplicate of the release, and of the message a replay; held is waited for.
        """
        kept = max(wish.expires, float(release.exp + self._verifier.retention))
        wish = replace(wish, place=None, redelivered=True, expires=kept)
        wished = replace(wish, id=release_id(release.iss, release.letter), index=None)
        status = yield from self._claim(delivery, wished)
        if status is not _FRESH or Reason.REPLAYED in release.waive:
            return status
        delivery.release_claim = delivery.claim
        status = yield from self._claim(delivery, wish)
        if status is ClaimStatus.DUPLICATE:
            raise Rejection(Reason.REPLAYED, "the message was handled before, without this release")
        return status

    def _claimed(self, delivery: Delivery, wish: ClaimRequest, status: ClaimStatus) -> ClaimStatus:
        """Return what a claim came to, noted where it is this delivery's now."""
        if status is _FRESH:
            delivery.claim = wish
            return status
        if status is ClaimStatus.REPLAYED:
            raise Rejection(Reason.REPLAYED, "a copy of a message that was delivered elsewhere")
        if status is ClaimStatus.HELD:
            raise Unavailable(Cause.CLAIM_HELD, "an earlier delivery of it is still being handled")
        if status is ClaimStatus.REREAD and self._reread == "duplicate":
            return ClaimStatus.DUPLICATE
        if status is ClaimStatus.REREAD:
            delivery.claim = wish
        elif status is not ClaimStatus.DUPLICATE:
            raise Unavailable(_STORE, "the store's answer is no claim status")
        return status


def _refuse(delivery: Delivery, error: Exception) -> None:
    """Reject what a step refused, or what broke it.

    Raises:
        Unavailable: the world was in the way, as ``error`` says.
    """
    if isinstance(error, OUR_FAULT):
        raise error
    delivery.reject(error if isinstance(error, Rejection) else _broken(error), Step.RECORD)


def _conclude(delivery: Delivery, status: ClaimStatus) -> None:
    """Move on to the step that follows from a claim."""
    if status is ClaimStatus.DUPLICATE:
        delivery.verdict, delivery.step = Verdict.DUPLICATE, Step.RECORD
    else:
        delivery.step = _HANDLE


def _permit(decision: Decision) -> None:
    """Refuse a message on anything but ALLOW."""
    if decision is not _ALLOW:
        raise Rejection(Reason.PRODUCER_FORBIDDEN, "no rule lets this subject publish here")


def _at_hand(source: KeySource) -> Any:
    """Return the keys a source has, to be awaited where it is asynchronous; ``None`` where there are none yet."""
    try:
        return source.key_set()
    except ColourError:
        raise
    except Exception:
        return None


def _known(at_hand: Any) -> Flow[KeySet | None]:
    """Return the keys at hand, awaited; ``None`` where there are none yet."""
    try:
        keys = yield from answered(_KEYS, at_hand)
    except Unavailable:
        return None
    return keys if isinstance(keys, KeySet) else None


def _looked_up(source: KeySource, kid: str, received: float, party: str) -> Flow[KeySet]:
    """Make the source of a configured party look again for a kid, once; it may decide that the kid is unknown.

    Raises:
        Unavailable: it is out of reach; names the party, since messages of others need not wait for it.
    """
    wished = either(source.refresh, getattr(source, "arefresh", None), kid, received)
    try:
        keys = yield from guarded(_KEYS, wished, passing=(*OUR_FAULT, Rejection))
    except Unavailable as error:
        raise Unavailable(error.cause, error.detail, party) from error
    if not isinstance(keys, KeySet):
        raise Unavailable(_KEYS, "the source's answer is no key set", party)
    return keys


def _total(step: Callable[..., R], *arguments: Any) -> R:
    """Take a pure step; a message that breaks it is malformed, and never an exception in a consumer."""
    try:
        return step(*arguments)
    except (Rejection, Unavailable):
        raise
    except Exception as error:
        raise _broken(error) from error


def _broken(error: Exception) -> Rejection:
    """Return the rejection of a message that broke a step."""
    return Rejection(Reason.MESSAGE_MALFORMED, f"{type(error).__name__} while it was judged")
