"""Keys in AWS KMS, on servers that stand in for it: signatures, faults, rights, credentials, and the page."""

from __future__ import annotations

import base64
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from integration.documentation import Reader, blocks, matches
from integration.held_key import (
    MESSAGE,
    Entered,
    Fault,
    OfAKeystore,
    signs_nothing_through,
)
from integration.keyserver import Authority
from integration.review.tunnel import Tunnel
from integration.services.kms import Emulation, LocalKms, MiniStack
from mqauth import Unavailable
from mqauth.cli import main
from mqauth.errors import ConfigurationError
from mqauth.keystore import ActiveKey, Keystore
from mqauth.keystore.reference.awskms import MAX_RAW, client_of
from mqauth.keystore.reference.uri import TIMEOUT, KmsReference
from mqauth.testing.signing_contract import accepted, verify
from mqauth.wire import jws
from mqauth.wire.keys import Key

SPECS: Final = {
    "EdDSA": "ECC_NIST_EDWARDS25519",
    "ES256": "ECC_NIST_P256",
    "ES384": "ECC_NIST_P384",
}
_NOWHERE: Final = {
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_CONFIG_FILE": "/nonexistent",
}  # fmt: skip
_NAMES: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
)


@contextmanager
def credentials(found: Mapping[str, str]) -> Iterator[None]:
    """Let the chain find these variables and nothing else while the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _NAMES:
            patch.delenv(name, raising=False)
        for name, value in {**_NOWHERE, **found}.items():
            patch.setenv(name, value)
        client_of.cache_clear()
        yield
    client_of.cache_clear()


@dataclass
class KmsHeld(Entered):
    """A key in an emulation.

    Args:
        kms: the emulation.
        folder: for a keystore.
        algorithm: of the key.
    """

    kms: Emulation
    folder: Path
    algorithm: str = "ES256"

    def __post_init__(self) -> None:
        self.client = self.kms.client()
        self.arn = self.make()
        self.store = Keystore(folder=self.folder / "keys")

    def make(self) -> str:
        """Make a key, and return its ARN."""
        made = self.client.create_key(
            KeySpec=SPECS[self.algorithm], KeyUsage="SIGN_VERIFY"
        )
        return str(made["KeyMetadata"]["Arn"])

    def uri(self, arn: str = "") -> str:
        """Return the reference of the key, or of another ARN."""
        return (
            f"awskms:{arn or self.arn}?endpoint={self.kms.url}&unsafe_http_loopback=true"
        )


class User:
    """A user of IAM with an access key, who may do some things with a key.

    Args:
        aws: the emulation.
        arn: the key.
        actions: that he may do.
    """

    def __init__(self, aws: MiniStack, arn: str, *actions: str) -> None:
        self._iam, self._arn, self._name = (
            aws.client("iam"),
            arn,
            f"user-{secrets.token_hex(6)}",
        )
        self._iam.create_user(UserName=self._name)
        self.may(*actions)
        self.key: dict[str, Any] = self._iam.create_access_key(UserName=self._name)[
            "AccessKey"
        ]

    def may(self, *actions: str) -> None:
        """Let him do these things, and nothing else."""
        statement = {
            "Effect": "Allow",
            "Action": [f"kms:{name}" for name in actions],
            "Resource": self._arn,
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self._iam.put_user_policy(
            UserName=self._name, PolicyName="sign", PolicyDocument=policy
        )

    def end(self) -> None:
        """Delete his access key."""
        self._iam.delete_access_key(
            UserName=self._name, AccessKeyId=self.key["AccessKeyId"]
        )

    @property
    def environment(self) -> dict[str, str]:
        """The variables of his processes."""
        return {
            "AWS_ACCESS_KEY_ID": self.key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": self.key["SecretAccessKey"],
        }  # fmt: skip


PAGE: Final = "docs/how-to/use-aws-kms.md"


@pytest.fixture(autouse=True)
def _anyone() -> Iterator[None]:
    """Credentials that local-kms does not look at."""
    with credentials(
        {"AWS_ACCESS_KEY_ID": "AKIA0", "AWS_SECRET_ACCESS_KEY": "unguessable-secret"}
    ):
        yield


@pytest.fixture
def held(local_kms: LocalKms, tmp_path: Path) -> KmsHeld:
    """A P-256 key in local-kms."""
    return KmsHeld(local_kms, tmp_path)


# --- the contract -----------------------------------------------------------------------------------------


class TestKeyInLocalKms(OfAKeystore):
    """ES256 and ES384, over messages and, beyond 4,096 bytes, digests."""

    @pytest.fixture(params=["ES256", "ES384"])
    def adopted(
        self, local_kms: LocalKms, request: pytest.FixtureRequest, tmp_path: Path
    ) -> KmsHeld:
        """A key of each algorithm."""
        found = KmsHeld(local_kms, tmp_path, request.param)
        found.adopt()
        return found


class Allowed(OfAKeystore):
    """The contract for a user who may get the public half and sign, and nothing else."""

    algorithm = "ES256"

    @pytest.fixture
    def adopted(self, ministack: MiniStack, tmp_path: Path) -> Iterator[KmsHeld]:
        """A key that such a user adopted."""
        found = KmsHeld(ministack, tmp_path, self.algorithm)
        with credentials(User(ministack, found.arn, "Sign", "GetPublicKey").environment):
            found.adopt()
            yield found


class TestKeyInMiniStack(Allowed):
    """ES256, with requests whose signature is checked."""


class TestEd25519KeyInMiniStack(Allowed):
    """EdDSA; the largest tokens are beyond what AWS KMS signs with such a key."""

    algorithm = "EdDSA"

    @pytest.mark.parametrize("size", [0, 1, 300, 2900])
    def test_signature_holds(self, signing_key: Any, public: Key, size: int) -> None:
        """A signature over bytes up to the bound is raw, and verifies with the public half."""
        super().test_signature_holds(signing_key, public, size)


# --- what is sent -----------------------------------------------------------------------------------------


def watched(held: KmsHeld) -> list[Any]:
    """Adopt a key, and return where what its producer sends from now on is noted."""
    held.adopt()
    sent: list[Any] = []
    client = client_of(os.getpid(), KmsReference.parse(held.uri()), TIMEOUT)
    client.meta.events.register(
        "before-send.kms", lambda request, **_: sent.append(json.loads(request.body))
    )
    return sent


@pytest.mark.parametrize(
    ("size", "kind", "length"), [(MAX_RAW, "RAW", MAX_RAW), (MAX_RAW + 1, "DIGEST", 32)]
)
def test_a_message_up_to_its_bound_is_sent_as_it_is(
    held: KmsHeld, size: int, kind: str, length: int
) -> None:
    """4,096 bytes are digested by AWS KMS, and one more here; both signatures hold."""
    sent, key = watched(held), ActiveKey(held.store.folder).signing_key()
    data = b"x" * size
    opened = jws.Opened(key.algorithm, key.kid, data, b"", key.sign(data))
    jws.verify(opened, held.store.ring().keys[0].key)
    (asked,) = sent
    assert (asked["MessageType"], len(base64.b64decode(asked["Message"]))) == (
        kind,
        length,
    )


def test_ed25519_signs_4096_bytes_and_no_more(
    ministack: MiniStack, tmp_path: Path
) -> None:
    """A longer signing input is refused before anything is asked, and the error says what to do."""
    held = KmsHeld(ministack, tmp_path, "EdDSA")
    with credentials(ministack.owner):
        sent, key = watched(held), ActiveKey(held.store.folder).signing_key()
        data = b"x" * MAX_RAW
        public = held.store.ring().keys[0].key
        jws.verify(jws.Opened("EdDSA", key.kid, data, b"", key.sign(data)), public)
        with pytest.raises(
            ConfigurationError,
            match="4096 bytes at most, and a token has 4097: use a P-256 key",
        ):
            key.sign(data + b"x")
    assert len(sent) == 1


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
def test_aws_refuses_the_other_way_for_long_messages(
    ministack: MiniStack, local_kms: LocalKms, tmp_path: Path, algorithm: str
) -> None:
    """The bounds are those of the service: 4,097 bytes of ES256 as RAW, and a digest for Ed25519, are refused."""
    held = KmsHeld(local_kms if algorithm == "ES256" else ministack, tmp_path, algorithm)
    asked = {
        "ES256": {
            "Message": b"x" * (MAX_RAW + 1),
            "MessageType": "RAW",
            "SigningAlgorithm": "ECDSA_SHA_256",
        },
        "EdDSA": {
            "Message": b"x" * 64,
            "MessageType": "DIGEST",
            "SigningAlgorithm": "ED25519_SHA_512",
        },
    }[algorithm]
    with pytest.raises(held.client.exceptions.ClientError, match=r"4096|MessageType"):
        held.client.sign(KeyId=held.arn, **asked)


# --- faults -----------------------------------------------------------------------------------------------

FAULTS: Final = {
    "killed": Fault(
        lambda held: held.kms.kill(),
        lambda held: held.kms.start(),
        "EndpointConnectionError",
    ),
    "paused": Fault(
        lambda held: held.kms.pause(), lambda held: held.kms.resume(), "ReadTimeoutError"
    ),
    "disabled": Fault(
        lambda held: held.client.disable_key(KeyId=held.arn),
        lambda held: held.client.enable_key(KeyId=held.arn),
        "DisabledException: the key is disabled",
    ),
    "to be deleted": Fault(
        lambda held: held.client.schedule_key_deletion(
            KeyId=held.arn, PendingWindowInDays=7
        ),
        lambda held: (
            held.client.cancel_key_deletion(KeyId=held.arn),
            held.client.enable_key(KeyId=held.arn),
        ),
        "KMSInvalidStateException: the key is to be deleted",
    ),
}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "paused" else ())
        for name in FAULTS
    ],
)
def test_a_producer_through_a_fault(
    fault: str, held: KmsHeld, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is signed meanwhile, the error names the host, and the signer goes on afterwards."""
    caplog.set_level(logging.DEBUG)
    told = signs_nothing_through(FAULTS[fault], held)
    assert f"{held.kms.url}: {held.arn}" in told
    assert [
        record.levelname for record in caplog.records if record.name.startswith("mqauth")
    ] == ["ERROR"]
    assert "unguessable-secret" not in told + caplog.text


@pytest.fixture
def guarded(ministack: MiniStack, tmp_path: Path) -> KmsHeld:
    """A P-256 key where each request is checked."""
    return KmsHeld(ministack, tmp_path)


@pytest.fixture
def user(guarded: KmsHeld, ministack: MiniStack) -> Iterator[User]:
    """Who may sign with it, and whose credentials the producer has."""
    found = User(ministack, guarded.arn, "Sign", "GetPublicKey")
    with credentials(found.environment):
        yield found


@pytest.mark.parametrize("taken", ["Sign", "GetPublicKey"])
def test_without_one_of_its_two_rights_nothing_is_adopted(
    guarded: KmsHeld, user: User, taken: str
) -> None:
    """Both rights are needed when a key is adopted, and the keystore stays as it was."""
    user.may(*({"Sign", "GetPublicKey"} - {taken}))
    with pytest.raises(
        Unavailable,
        match="AccessDeniedException: no policy allows kms:Sign or kms:GetPublicKey",
    ):
        guarded.adopt()
    assert not guarded.store.folder.exists()


def test_a_right_that_is_taken_away(guarded: KmsHeld, user: User) -> None:
    """Once it was adopted, signing needs ``kms:Sign`` alone; without it nothing is signed until it is back."""
    public, signer = guarded.adopt(), guarded.signer()
    user.may("Sign")
    assert accepted(signer.sign(MESSAGE), public)
    user.may("GetPublicKey")
    with pytest.raises(Unavailable, match="AccessDeniedException"):
        signer.sign(MESSAGE)
    user.may("Sign")
    assert accepted(signer.sign(MESSAGE), public)


def test_an_access_key_that_was_deleted(
    guarded: KmsHeld, user: User, caplog: pytest.LogCaptureFixture
) -> None:
    """A producer is cut off by deleting its access key; no text holds the secret."""
    caplog.set_level(logging.DEBUG)
    guarded.adopt()
    signer = guarded.signer()
    user.end()
    with pytest.raises(
        Unavailable, match="the credentials are wrong or have ended"
    ) as caught:
        signer.sign(MESSAGE)
    shown = f"{caught.value!r}{caught.value.__cause__!r}{caplog.text}"
    assert user.key["SecretAccessKey"] not in shown


def test_a_credentials_file_that_is_replaced(
    guarded: KmsHeld, user: User, tmp_path: Path
) -> None:
    """After AWS refused the credentials of a file, the file is read again: without a restart."""
    path = tmp_path / "credentials"
    text = "[default]\naws_access_key_id = {AWS_ACCESS_KEY_ID}\naws_secret_access_key = {AWS_SECRET_ACCESS_KEY}\n"
    path.write_text(text.format(**user.environment))
    with credentials({"AWS_SHARED_CREDENTIALS_FILE": str(path)}):
        public, signer = guarded.adopt(), guarded.signer()
        user.end()
        with pytest.raises(Unavailable, match="UnrecognizedClientException"):
            signer.sign(MESSAGE)
        assert isinstance(guarded.kms, MiniStack)
        path.write_text(text.format(**User(guarded.kms, guarded.arn, "Sign").environment))
        assert accepted(signer.sign(MESSAGE), public) == public.kid


def test_credentials_of_a_role(
    guarded: KmsHeld, ministack: MiniStack, caplog: pytest.LogCaptureFixture
) -> None:
    """A role's session token is sent and signed; a wrong one is refused; no log line shows it, also at DEBUG."""
    name = role(ministack)
    allowed(ministack, name, guarded.arn)
    found = assumed(ministack, name)
    caplog.set_level(logging.DEBUG)
    with credentials(found):
        public = guarded.adopt()
        assert accepted(guarded.signer().sign(MESSAGE), public) == public.kid
    with (
        credentials({**found, "AWS_SESSION_TOKEN": "wrong"}),
        pytest.raises(Unavailable, match="credentials"),
    ):
        guarded.signer().sign(MESSAGE)
    assert "Found credentials" in caplog.text
    assert not any(
        value in caplog.text
        for value in (found["AWS_SESSION_TOKEN"], found["AWS_SECRET_ACCESS_KEY"])
    )


def role(aws: MiniStack, name: str = "") -> str:
    """Make a role that anybody may take on, and return its name."""
    name = name or f"role-{os.urandom(4).hex()}"
    trust = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    aws.client("iam").create_role(
        RoleName=name, AssumeRolePolicyDocument=json.dumps({"Statement": [trust]})
    )
    return name


def allowed(aws: MiniStack, name: str, arn: str) -> None:
    """Let a role use a key."""
    right = {
        "Effect": "Allow",
        "Action": ["kms:Sign", "kms:GetPublicKey"],
        "Resource": arn,
    }
    document = json.dumps({"Statement": [right]})
    aws.client("iam").put_role_policy(
        RoleName=name, PolicyName="sign", PolicyDocument=document
    )


def assumed(aws: MiniStack, name: str) -> dict[str, str]:
    """Return the credentials of a role."""
    arn = aws.client("iam").get_role(RoleName=name)["Role"]["Arn"]
    found = aws.client("sts").assume_role(RoleArn=arn, RoleSessionName="orders")[
        "Credentials"
    ]
    return {
        "AWS_ACCESS_KEY_ID": found["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": found["SecretAccessKey"],
        "AWS_SESSION_TOKEN": found["SessionToken"],
    }  # fmt: skip


# --- processes, endpoints, the command ------------------------------------------------------------------------


def test_child_after_a_fork(held: KmsHeld) -> None:
    """A child signs with the key that its parent has used, by a search of its own for credentials."""
    public = held.adopt()
    key = ActiveKey(held.store.folder).signing_key()
    verify(jws.compact(b"x", key), public)
    child = os.fork()
    if not child:
        try:
            verify(jws.compact(b"y", key), public)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    verify(jws.compact(b"z", key), public)


def test_credentials_that_are_nowhere(held: KmsHeld) -> None:
    """A producer starts without credentials; its first message is told, and signed once there are some."""
    public = held.adopt()
    with credentials({}):
        signer = held.signer()
        with pytest.raises(Unavailable, match="NoCredentialsError"):
            signer.sign(MESSAGE)
    assert accepted(signer.sign(MESSAGE), public) == public.kid


def test_an_endpoint_by_tls(held: KmsHeld, tmp_path: Path) -> None:
    """An endpoint of one's own is asked by TLS, with its CA; without that it is not trusted."""
    authority = Authority(tmp_path)
    with Tunnel(urlsplit(held.kms.url).port or 0, authority.issue()) as tunnel:
        uri = f"awskms:{held.arn}?endpoint=https://127.0.0.1:{tunnel.port}"
        with pytest.raises(Unavailable, match="SSLError"):
            held.adopt(uri)
        assert not held.store.folder.exists()
        public = held.adopt(f"{uri}&ca={authority.path}")
        assert accepted(held.signer().sign(MESSAGE), public) == public.kid


def test_the_command(
    held: KmsHeld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``mqauth keys adopt`` enters the key of an ARN; a key that is not there is exit code 3."""
    adopt = [
        "keys",
        "adopt",
        "--dir",
        str(tmp_path / "keys"),
        "--subject",
        "orders-api",
        "--publish-delay",
        "0",
    ]
    assert main([*adopt, "--uri", held.uri()]) == 0
    assert [entry.uri for entry in Keystore(folder=tmp_path / "keys").ring().keys] == [
        held.uri()
    ]
    capsys.readouterr()
    assert (
        main([*adopt, "--uri", held.uri(arn=held.arn.rpartition("/")[0] + "/none")]) == 3
    )
    said = capsys.readouterr()
    assert "NotFoundException: no such key" in said.err
    assert said.out == ""


@pytest.mark.slow
def test_the_page_does_what_it_says(
    ministack: MiniStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command of the page runs, in order, with AWS's own command; the last one stops the producer."""
    monkeypatch.setenv(
        "PATH", str(ministack.commands(tmp_path / "bin")), prepend=os.pathsep
    )
    changes = {
        "awskms:$ARN": f"awskms:$ARN?endpoint={ministack.url}&unsafe_http_loopback=true"
    }
    printed, signed = (
        "",
        next(block for block in blocks(PAGE) if block.language == "python"),
    )
    role(ministack, "orders-api")
    with credentials(ministack.owner):
        reader = Reader(tmp_path, changes)
        for block in blocks(PAGE):
            if block.mark == "output":
                assert matches(block.text, printed)
            elif block.mark == "kms":
                printed = reader.run(block)
            if block == signed:
                # The rights that the page gives are enough.
                with credentials(assumed(ministack, "orders-api")):
                    assert ActiveKey(tmp_path / "keys").signing_key().sign(b"x")
        with pytest.raises(AssertionError, match="the key is disabled"):
            reader.run(signed)
