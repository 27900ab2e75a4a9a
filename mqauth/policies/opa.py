"""Decisions of an Open Policy Agent: asked by HTTP, remembered for seconds, and never taken for granted.

``true`` and ``false`` are answers. Everything else is none: no answer in time, another status, an undefined
result, a text, too many bytes. Then the verdict is deferred (``policy_unavailable``): the message is neither
rejected nor accepted, and tried again. A service out of reach concerns every message; an answer that is no
decision concerns that question alone, so that one producer's messages cannot keep those of others waiting.

What is asked is what the answer is remembered by. So nothing that differs from message to message is in it: no id,
no time, no body, no header. A producer can vary its routing keys alone, within the local rules if there are any.

Source: https://www.openpolicyagent.org/docs/rest-api, "Get a Document (with Input)" and "Provenance".
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from mqauth.audit.disk import read_bounded
from mqauth.clock import SYSTEM_CLOCK, Backoff, Clock, Pause
from mqauth.errors import Cause, MqauthError, Unavailable, refusing, require
from mqauth.http.connection import (
    MAX_TIMEOUT,
    VISIBLE,
    Deadline,
    Dial,
    Endpoint,
    FetchFailed,
    Kept,
    tls_context,
)
from mqauth.http.exchange import request
from mqauth.judging.policy import Allow, Decision
from mqauth.judging.verified import Verified, scope_of
from mqauth.logs import emit, harmless
from mqauth.threads import after_fork
from mqauth.wire import memo, strict_json

REMEMBER: Final = 10.0
MAX_REMEMBER: Final = 300.0
TIMEOUT: Final = 0.5
MIN_TIMEOUT: Final = 0.01
MAX_ANSWER: Final = 16 * 1024
"""Bytes of an answer."""
MAX_MEMORY: Final = 8 * 1024 * 1024
"""Bytes of all remembered decisions together."""
_UNASKED: Final = "opa, not asked yet"
_UNVERSIONED: Final = "opa, no bundle"
_NO_DECISION: Final = "the answer is neither true nor false"
"""Said of an undefined result, too: a path that is misspelt, or a rule without a default."""
State = Literal["ok", "failing", "unasked"]
RETRIES: Final = Backoff(first=1.0, longest=30.0)
"""For how long nobody asks after failures in a row."""


VERSION: Final = 1


class Question(NamedTuple):
    """One question.

    Args:
        form: ``direct`` or ``identity``.
        issuer: the verified issuer; of the identity form its trust domain.
        subject: the verified producer.
        audience: whom the message is meant for.
        destination: where it was published, in its canonical form.
        scope: the group or queue on whose behalf it is handled.
        claims: what the authority of the identity form says of the producer, as JSON; ``{}`` in the direct form.
    """

    form: str
    issuer: str
    subject: str
    audience: str
    destination: str
    scope: str
    claims: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The question as the member ``input`` that is posted."""
        return {
            "v": VERSION,
            **self._asdict(),
            "claims": strict_json.loads(self.claims, depth=8),
        }


def question_of(verified: Verified, scope: str | None) -> Question:
    """Return what is asked of a message.

    Args:
        verified: the message.
        scope: the configured one, ``None`` where the broker wrapper says it.
    """
    claims, identity = verified.claims, verified.identity
    return Question(
        "direct" if identity is None else "identity",
        claims.iss,
        claims.sub,
        claims.aud,
        verified.destination,
        scope_of(verified.origin, scope),
        b"{}" if identity is None else strict_json.dumps(dict(identity.claims)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyHealth:
    """The state of a policy from outside.

    Args:
        source: the URL that is asked.
        state: ``ok``, ``failing``, or ``unasked`` before the first answer.
        version: the revisions of its bundles.
        remembered: decisions that are in memory.
        asked: requests since the start.
        failed: how many of them brought no decision.
        failing_for: seconds since the first failure of the present outage; 0 while there is none, and where nobody
            has asked for a minute.
        last_failure: why the last request failed, while there is an outage.
    """

    source: str
    state: State
    version: str
    remembered: int
    asked: int
    failed: int
    failing_for: float
    last_failure: str


class OPA:
    """Decides who may publish where by a rule of an Open Policy Agent.

    It is asked ``POST /v1/data/<path>?provenance=true`` with ``Question`` as input. Threads call ``decide``, event
    loops ``adecide``; ``remembered`` never waits.

    Args:
        url: of the agent; https, or http on loopback.
        path: of the rule, such as ``mqauth/allow`` for ``allow`` of ``package mqauth``. It gives a boolean.
        within: rules of this process that must allow a message, too; what they refuse is never asked.
        scope: as of the pipeline.
        remember: seconds for which a decision is remembered, refusals too, 0 to 300.
        timeout: seconds for a whole request, 0.01 to 5.
        ca: a PEM file of the CAs to trust instead of the system's.
        token_file: a file with the bearer token to send, read again for each request.
        clock: tells the time.
        dial: opens a connection, for tests.

    Raises:
        ConfigurationError: the URL, the path or a bound is not allowed, or a file cannot be read.
    """

    def __init__(
        self,
        url: str,
        path: str,
        *,
        within: Allow | None = None,
        scope: str | None = None,
        remember: float = REMEMBER,
        timeout: float = TIMEOUT,
        ca: str | Path | None = None,
        token_file: str | Path | None = None,
        clock: Clock = SYSTEM_CLOCK,
        dial: Dial | None = None,
    ) -> None:
        require(
            is_path(path),
            "a path in OPA is words of letters, digits, _ and -, with / between them",
        )
        require(isinstance(url, str) and "?" not in url, "the URL of OPA has no query")
        require(
            0 <= remember <= MAX_REMEMBER, f"remember is 0 to {MAX_REMEMBER:g} seconds"
        )
        require(
            MIN_TIMEOUT <= timeout <= MAX_TIMEOUT,
            f"timeout is {MIN_TIMEOUT:g} to {MAX_TIMEOUT:g} seconds",
        )
        self._endpoint = Endpoint.parse(
            f"{url.rstrip('/')}/v1/data/{path}?provenance=true",
            unsafe_http_loopback=True,
            name="the URL of OPA",
        )
        self._context = tls_context(ca) if self._endpoint.tls else None
        self._token_file = None if token_file is None else Path(token_file)
        self._bearer()
        self.source = self.where = self._endpoint.shown
        self.within, self.scope = within, scope
        self._remember, self._timeout = remember, timeout
        self._clock, self._dial, self._kept = clock, dial, Kept()
        self._version = _UNASKED
        # Monotonic seconds at which these revisions answered first.
        self._learnt = float("-inf")
        # Each with the monotonic seconds until which it counts. A producer varies its routing keys, and names may
        # be long: it pushes out decisions of its own alone.
        self._decisions = memo.Recent[Question, tuple[float, Decision]](
            MAX_MEMORY,
            lambda question, _: memo.size_of(question),
            lambda question: (question.issuer, question.subject),
        )
        self._pause, self._why = Pause(RETRIES), ""
        self._asked = self._failed = 0
        self.forked()
        after_fork(self)

    @property
    def version(self) -> str:
        """The revisions of the bundles that the last answer came from, after the version of ``within``.

        All decisions that are remembered came from these: another revision empties the memory.
        """
        return (
            self._version
            if self.within is None
            else f"{self.within.version}, {self._version}"
        )

    def remembered(self, verified: Verified, /) -> Decision | None:
        """Return a decision that is known without asking, ``None`` where there is none; never waits."""
        if self.within is not None and self.within.decide(verified) is not Decision.ALLOW:
            return Decision.DENY
        known = self._decisions.get(question_of(verified, self.scope))
        return (
            known[1] if known is not None and self._clock.monotonic() < known[0] else None
        )

    def decide(self, verified: Verified, /) -> Decision:
        """Return the decision for one message; it blocks for ``timeout`` seconds at most.

        Raises:
            Unavailable: ``policy_unavailable``: there was no answer, or it is no decision.
        """
        decision = self.remembered(verified)
        return (
            self._ask(question_of(verified, self.scope)) if decision is None else decision
        )

    async def adecide(self, verified: Verified, /) -> Decision:
        """Do the same as ``decide``, and let the event loop run meanwhile."""
        decision = self.remembered(verified)
        if decision is None:
            # While the agent is left alone nobody waits for a thread, which others may have.
            require(self._clock.monotonic() >= self._pause.until, self._why, _unavailable)
            # Where no thread can be started, or the interpreter ends, nobody asks.
            with refusing(
                RuntimeError, lambda error: f"nobody can ask: {error}", _unavailable
            ):
                asked = self._pool.submit(self._ask, question_of(verified, self.scope))
            decision = await asyncio.wrap_future(asked)
        return decision

    def probe(self) -> None:
        """Ask what names nobody, so that a wrong path or rule stops a start and not a partition.

        An agent out of reach stops no start: messages are deferred until it answers.

        Raises:
            ConfigurationError: the answer is no boolean, or it is ``true``: whatever is asked is allowed.
        """
        try:
            self.probed()
        except FetchFailed as error:
            emit(
                "policy.unreachable",
                "%s: %s; messages wait until it answers",
                self.source,
                error,
            )

    async def aprobe(self) -> None:
        """Do the same as ``probe``, and let the event loop run meanwhile."""
        await asyncio.wrap_future(self._pool.submit(self.probe))

    def probed(self) -> str:
        """Ask what names nobody, and return the revisions of the bundles.

        Raises:
            FetchFailed: there was no answer.
            ConfigurationError: as ``probe``.
        """
        begun = self._clock.monotonic()
        # It names nobody, so that a policy has to refuse it.
        allowed, version = self._post({"v": VERSION, "probe": True})
        require(
            type(allowed) is bool,
            f"{self.source}: {_NO_DECISION}: is the path misspelt, or the rule without `default allow := false`?",
        )
        require(
            allowed is False,
            f"{self.source}: it allows what names no producer: is its default true?",
        )
        with self._lock:
            self._learn(version, begun)
        return version or _UNVERSIONED

    def health(self) -> PolicyHealth:
        """Return how the agent is doing; may be called from any thread."""
        with self._lock:
            now = self._clock.monotonic()
            # Where nobody has asked for a minute nobody knows.
            since = self._pause.failing_since if now < self._pause.until + 60.0 else None
            known: State = "unasked" if self._version == _UNASKED else "ok"
            return PolicyHealth(
                source=self.source,
                state=known if since is None else "failing",
                version=self.version,
                remembered=len(self._decisions),
                asked=self._asked,
                failed=self._failed,
                failing_for=0.0 if since is None else now - since,
                last_failure=self._why,
            )

    def forked(self) -> None:
        """Make what a child after a fork lacks: the lock and the threads."""
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(4, "mqauth-opa")

    def _ask(self, question: Question) -> Decision:
        """Ask one question, unless another thread has asked it meanwhile, and remember the answer.

        Raises:
            Unavailable: there was no answer, it is no decision, or the agent is left alone.
        """
        begun = self._clock.monotonic()
        with self._lock:
            known = self._decisions.get(question)
            if known is not None and begun < known[0]:
                return known[1]
            require(self._pause.begin(begun, self._timeout), self._why, _unavailable)
        try:
            allowed, version = self._post(question.document)
        except Exception as error:  # whatever goes wrong is no decision
            why = (
                str(error)
                if isinstance(error, MqauthError)
                else f"the request broke: {type(error).__name__}"
            )
            with self._lock:
                self._why, self._failed = why, self._failed + 1
                self._pause.failed(begun, self._clock.monotonic())
            raise _unavailable(why) from error
        # In one step, so that nothing is remembered that another revision decided.
        with self._lock:
            current = self._learn(version, begun)
            if type(allowed) is not bool:
                self._failed += 1
                raise _unavailable(_NO_DECISION)
            decision = Decision.ALLOW if allowed else Decision.DENY
            if current:
                self._decisions.keep(question, (begun + self._remember, decision))
            return decision

    def _learn(self, version: str | None, begun: float) -> bool:
        """Note that the agent answered, by these revisions: what was decided by others is forgotten.

        Returns whether they are those in use: a slow answer may be of revisions before them.
        """
        self._pause.answered()
        self._why = ""
        if version is None or version == self._version:
            return True
        if begun < self._learnt:
            return False
        self._decisions.clear()
        self._version, self._learnt = version, self._clock.monotonic()
        return True

    def _post(self, document: Mapping[str, Any]) -> tuple[object, str | None]:
        """Return the result that OPA gives for an input, and the version of its policy; ``None`` if it gives none.

        Raises:
            FetchFailed: it gave no answer.
            ConfigurationError: the token cannot be read.
        """
        with self._lock:
            self._asked += 1
        response = request(
            self._endpoint,
            deadline=Deadline(self._clock, self._timeout),
            context=self._context,
            document={"input": document},
            headers={"Authorization": self._bearer()},
            statuses=(200, 400, 500),
            limit=MAX_ANSWER,
            dial=self._dial,
            kept=self._kept,
        )
        answer = response.document or {}
        return (
            (answer.get("result"), version_of(answer))
            if response.status == 200
            else (None, None)
        )

    def _bearer(self) -> str | None:
        if self._token_file is None:
            return None
        token = read_bounded(self._token_file, 8192).decode("ascii", "replace").strip()
        require(
            VISIBLE.fullmatch(token),
            f"{self._token_file}: not a token in one line of ASCII",
        )
        return f"Bearer {token}"


def is_path(value: object) -> bool:
    """Tell whether a value is the path of a rule, such as ``mqauth/allow``."""
    return (
        isinstance(value, str)
        and len(value) <= 256
        and re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", value, re.ASCII) is not None
    )


def version_of(document: Mapping[str, Any]) -> str:
    """Return the revisions of the bundles that an answer names, in one short line."""
    provenance = document.get("provenance")
    bundles = provenance.get("bundles") if isinstance(provenance, dict) else None
    if not isinstance(bundles, dict) or not bundles:
        return _UNVERSIONED
    named = sorted(
        f"{name}@{bundle.get('revision') or '?'}"
        if isinstance(bundle, dict)
        else f"{name}@?"
        for name, bundle in bundles.items()
    )
    version = harmless("opa " + " ".join(named), 4 * MAX_ANSWER)
    return (
        version
        if len(version) <= 128
        else f"opa {hashlib.sha256(version.encode()).hexdigest()[:16]}"
    )


def _unavailable(why: str) -> Unavailable:
    return Unavailable(Cause.POLICY_UNAVAILABLE, why or "it has not answered yet")
