"""Steps 1 to 13 of a verdict, in their order, once for every broker and both colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Final, Literal, ParamSpec, TypeVar, cast

from mqauth.claims import Claims
from mqauth.clock import Clock, Randomness
from mqauth.errors import Cause, Reason, Rejection, Unavailable
from mqauth.flow import OUR_FAULT, Flow, asked, either, guarded
from mqauth.form import token_in
from mqauth.judging.delivery import Delivery, Step, Verdict
from mqauth.keys import KeySet, KeySource
from mqauth.kindred import Kindred
from mqauth.message import Message
from mqauth.policy import Decision, Policy
from mqauth.release import Release, is_released, open_release
from mqauth.replay import ClaimRequest, ClaimStatus, ReplayStore, batch_id, claim_id, release_id
from mqauth.siblings import Siblings
from mqauth.verified import Verified
from mqauth.verifier import Candidate, Verifier

P = ParamSpec("P")
R = TypeVar("R")
_OWNER_BYTES: Final = 12
_HELD_SECONDS: Final = 3600
_STORE: Final = Cause.REPLAY_STORE_UNAVAILABLE
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
        self._siblings = Siblings(verifier, policy)
        self._kindred = Kindred(verifier, policy)

    def scope_of(self, message: Message) -> str:
        """Return on whose behalf a message is handled."""
        return self._scope or message.origin.scope or message.origin.queue or "default"

    def judge(self, delivery: Delivery) -> Flow[None]:
        """Reach a verdict and move on to the step that follows from it.

        Raises:
            Unavailable: it cannot be reached now.
        """
        wish = self.alike(delivery)
        if delivery.step is _JUDGE:
            yield from self.in_full(delivery, wish)

    def in_full(self, delivery: Delivery, wish: ClaimRequest | None = None) -> Flow[None]:
        """Reach a verdict like ``judge``, on a message that is known not to be ``alike``, or whose wish is known.

        Raises:
            Unavailable: it cannot be reached now.
        """
        try:
            wish = wish or (yield from self._wished(delivery))
            if wish is None:
                status = yield from self._judge_released(delivery)
            else:
                status = yield from self._claim(delivery, wish)  # 13
            _conclude(delivery, status)
        except Rejection as rejection:
            delivery.reject(rejection, Step.RECORD)

    def alike(self, delivery: Delivery) -> ClaimRequest | None:
        """Take steps 1 to 12 of a message like one that was accepted, without a flow.

        Returns:
            The wish; ``None`` where there is a verdict, and where it takes the other way to one.
        """
        try:
            token, batched, behind = token_in(delivery.message).partition(b"~")
            if batched:
                verified = self._siblings.judge(delivery, token, behind)
            else:
                verified = self._kindred.judge(delivery, token)
            return None if verified is None else self._wish(delivery, verified.claims, verified.index)
        except Rejection as rejection:
            if rejection.reason is Reason.SIGNATURE_INVALID:
                delivery.reject(rejection, Step.RECORD)
        except Exception:
            return None  # all steps say what is wrong
        return None

    def wish(self, delivery: Delivery) -> Flow[ClaimRequest | None]:
        """Take steps 1 to 12, for who makes many claims together and brings what they found to ``answer``.

        Returns:
            The wish; ``None`` where there is a verdict, and for a released message, which is judged in its turn.

        Raises:
            Unavailable: the verdict cannot be reached now.
        """
        try:
            return (yield from self._wished(delivery))
        except Rejection as rejection:
            delivery.reject(rejection, Step.RECORD)
            return None

    def answer(self, delivery: Delivery, wish: ClaimRequest, status: ClaimStatus) -> None:
        """Reach the verdict that follows from a claim: step 13.

        Raises:
            Unavailable: another delivery holds it.
        """
        if status is _FRESH:
            delivery.claim, delivery.step = wish, _HANDLE
            return
        try:
            _conclude(delivery, self._claimed(delivery, wish, status))
        except Rejection as rejection:
            delivery.reject(rejection, Step.RECORD)

    def _wished(self, delivery: Delivery) -> Flow[ClaimRequest | None]:
        """Take all steps but the claim; of a released message only 1 to 4, and return ``None``."""
        delivery.candidate = candidate = _total(self._verifier.open, delivery.message)  # 1 to 4
        if is_released(delivery.message):
            return None
        keys = yield from self._keys(delivery, candidate)  # 5
        found = self._verify(delivery, candidate, keys)  # 6 to 11
        _permit((yield from asked(_POLICY, self._policy.decide, found)))  # 12
        with suppress(Exception):  # what is learnt saves time, and must cost no consumer
            self._siblings.learn(delivery)
            self._kindred.learn(delivery, keys)
        return self._wish(delivery, found.claims, found.index)

    def _judge_released(self, delivery: Delivery) -> Flow[ClaimStatus]:
        """Judge a released message from step 5; the release itself once the producer's signature was found good.

        So a message that no producer has signed never asks for an authority's keys. Released to another scope it
        ends there.
        """
        message, candidate = delivery.message, cast(Candidate, delivery.candidate)
        keys = yield from self._keys(delivery, candidate)  # 5
        _total(self._verifier.authenticate, message, candidate, keys, delivery.received)  # 6, 7
        release = delivery.release = yield from self._released(delivery)
        if release.scope != self.scope_of(message):
            return ClaimStatus.DUPLICATE
        verified = self._verify(delivery, candidate, keys)  # 6 to 11, with what is waived
        if Reason.PRODUCER_FORBIDDEN not in release.waive:
            _permit((yield from asked(_POLICY, self._policy.decide, verified)))
        wish = self._wish(delivery, verified.claims, verified.index)
        return (yield from self._claim_release(delivery, wish, release))

    def _released(self, delivery: Delivery) -> Flow[Release]:
        """Judge the release a message carries; whatever is wrong with it is ``release_invalid``."""
        message, authorities = delivery.message, self._verifier.release
        found = _total(open_release, message)
        if authorities is None:
            raise Rejection(Reason.RELEASE_INVALID, "no release authority is configured")
        source, kid = authorities.source(found), found.opened.kid
        keys = yield from _known(source)
        if keys is None or keys.get(kid) is None:
            try:
                keys = yield from _looked_up(source, kid, delivery.received, found.release.iss)
            except Rejection as error:
                raise Rejection(Reason.RELEASE_INVALID, "the authority has no such key") from error
        return _total(authorities.verify, message, found, keys, delivery.received)

    def _keys(self, delivery: Delivery, candidate: Candidate) -> Flow[KeySet]:
        """Return the keys of the token's issuer, which may have to be waited for: step 5."""
        source, kid = self._verifier.source(candidate), candidate.opened.kid
        keys = yield from _known(source)
        if keys is None or keys.get(kid) is None:
            delivery.key_set = None if keys is None else keys.version
            keys = yield from _looked_up(source, kid, delivery.received, candidate.claims.iss)
        delivery.key_set = keys.version
        return keys

    def _verify(self, delivery: Delivery, candidate: Candidate, keys: KeySet) -> Verified:
        """Judge the token with its message, and note what was verified."""
        found = _total(
            self._verifier.verify, delivery.message, candidate, keys, delivery.received, delivery.release
        )
        delivery.verified = found
        return found

    def name_owners(self, deliveries: Sequence[Delivery]) -> None:
        """Give each delivery the nonce it claims with, drawn at once; one it has it keeps."""
        drawn, length = self._randomness(_OWNER_BYTES * len(deliveries)).hex(), 2 * _OWNER_BYTES
        for at, delivery in enumerate(deliveries):
            if delivery.owner is None:
                delivery.owner = drawn[at * length : (at + 1) * length]

    def _wish(self, delivery: Delivery, claims: Claims, index: int | None) -> ClaimRequest:
        """Return the claim a delivery wishes for; its owner is one for ever."""
        origin = delivery.message.origin
        if delivery.owner is None:
            delivery.owner = self._randomness(_OWNER_BYTES).hex()
        return ClaimRequest(
            self._scope or origin.scope or self.scope_of(delivery.message),
            _claim_id(claims, index),
            delivery.owner,
            origin.coordinates,
            origin.redelivered,
            self._lease,
            self._forgotten_at(delivery, claims.exp),
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

    def _forgotten_at(self, delivery: Delivery, exp: int) -> float:
        """Return until when a claim is kept: past every copy, those deferred beside it too, and its lease."""
        held = self._clock.now() + (_HELD_SECONDS if delivery.deferred else self._lease)
        kept = float(exp + self._retention)
        return kept if kept > held else held


_token_id = lru_cache(maxsize=256)(claim_id)


def _claim_id(claims: Claims, index: int | None) -> bytes:
    """Return the id a message is claimed by: its token's, in a batch with its place."""
    if index is None:
        return claim_id(claims.iss, claims.sub, claims.jti)
    return batch_id(_token_id(claims.iss, claims.sub, claims.jti), index)


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


def _known(source: KeySource) -> Flow[KeySet | None]:
    """Return the keys at hand, ``None`` where there are none yet."""
    try:
        keys: KeySet = yield from asked(Cause.KEYS_UNAVAILABLE, source.key_set)
    except Unavailable:
        return None
    return keys


def _looked_up(source: KeySource, kid: str, received: float, party: str) -> Flow[KeySet]:
    """Make the source of a configured party look again for a kid, once; it may decide that the kid is unknown.

    Raises:
        Unavailable: it is out of reach; names the party, since messages of others need not wait for it.
    """
    wished = either(source.refresh, getattr(source, "arefresh", None), kid, received)
    try:
        keys: KeySet = yield from guarded(Cause.KEYS_UNAVAILABLE, wished, passing=(*OUR_FAULT, Rejection))
    except Unavailable as error:
        raise Unavailable(error.cause, error.detail, party) from error
    return keys


def _total(step: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Take a pure step; a message that breaks it is malformed, and never an exception in a consumer."""
    try:
        return step(*args, **kwargs)
    except (Rejection, Unavailable):
        raise
    except Exception as error:
        raise Rejection(Reason.MESSAGE_MALFORMED, f"{type(error).__name__} while it was judged") from error
