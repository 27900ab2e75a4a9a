"""AWS credentials, as boto3 finds them, and the signature of a request to AWS that is made with them.

botocore walks its chain: environment, shared files and profiles, SSO, a process, web identity, container,
instance. Some of these ask a network or start a program, and take no timeout. So the chain is walked on a thread
of its own, one at a time for the whole process; who asks waits for it until a deadline. botocore renews what ends.

No text of botocore's errors is repeated: a process of the chain may have said anything.

Source: "Signature Version 4 for API requests" of the IAM User Guide.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.session import Session

from mqauth.audit.redaction import redact_logging
from mqauth.clock import Clock
from mqauth.http.connection import Deadline, Endpoint, FetchFailed, expect

redact_logging()
_ONCE: Final = Config(connect_timeout=1, read_timeout=1, retries={"total_max_attempts": 1})
"""For what the chain itself asks of AWS, STS for example: we are asked again by ourselves."""


class CredentialChain:
    """The credentials of this process; threads share it, and a child after a fork has its own."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, with the files and the environment as they are now."""
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._walk: Future[Any] | None = None

    def refused(self) -> None:
        """Take note that AWS does not know the credentials: those of files and environment are read again."""
        self._session = None

    def credentials(self, deadline: Deadline) -> Any:
        """Return access key, secret key and session token, ``ReadOnlyCredentials`` of botocore.

        Raises:
            FetchFailed: there are none, or they were not found in time.
        """
        try:
            with self._lock:
                # Kept only once it has begun: nobody may wait for a walk that no thread makes.
                walk = self._walk = self._walk or self._begin()
            found = walk.result(deadline.remaining())
        except TimeoutError:
            raise FetchFailed("AWS credentials were not found in time") from None
        except Exception as error:
            # Neither its text nor its cause: see above.
            raise FetchFailed(f"no AWS credentials: {type(error).__name__}") from None
        expect(found is not None, "no AWS credentials: neither environment, files nor this machine have any")
        return found

    def _begin(self) -> Future[Any]:
        walk = Future[Any]()
        threading.Thread(target=self._go, args=(walk,), name="mqauth-aws-credentials", daemon=True).start()
        return walk

    def _go(self, walk: Future[Any]) -> None:
        try:
            found = self._chain().get_credentials()
            end = partial(walk.set_result, None if found is None else found.get_frozen_credentials())
        except Exception as error:
            end = partial(walk.set_exception, error)
        # First: whoever asks from now on wants what is true then.
        with self._lock:
            self._walk = None
        end()

    def _chain(self) -> Session:
        session = self._session
        if session is None:
            session = self._session = Session()
            session.set_default_client_config(_ONCE)
        return session


CHAIN: Final = CredentialChain()
os.register_at_fork(after_in_child=CHAIN.forget)


def signed(
    credentials: Any, body: bytes, *, region: str, endpoint: Endpoint, headers: Mapping[str, str], clock: Clock
) -> dict[str, str]:
    """Return the headers of a POST to KMS, its signature among them.

    Args:
        credentials: as ``CredentialChain`` has them.
        body: what is posted.
        region: the one of the key.
        endpoint: where it goes.
        headers: that are signed beside ``Host`` and those of AWS.
        clock: tells the time of the request; AWS allows five minutes of difference.
    """
    now = datetime.fromtimestamp(clock.now(), UTC).strftime("%Y%m%dT%H%M%SZ")
    token = {"X-Amz-Security-Token": credentials.token} if credentials.token else {}
    sent = {**headers, "Host": endpoint.authority, "X-Amz-Date": now, **token}
    asked = AWSRequest("POST", endpoint.shown, headers=sent, data=body)
    asked.context["timestamp"] = now
    # Its steps, not its add_auth: that one writes the session token into the log, at DEBUG.
    auth = SigV4Auth(credentials, "kms", region)
    signature = auth.signature(auth.string_to_sign(asked, auth.canonical_request(asked)), asked)
    names = auth.signed_headers(auth.headers_to_sign(asked))
    value = f"AWS4-HMAC-SHA256 Credential={auth.scope(asked)}, SignedHeaders={names}, Signature={signature}"
    return {**sent, "Authorization": value}
