"""Keys in an emulation of AWS KMS, for tests: each with a keystore that names it, and users of IAM."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from integration.held_key import Entered
from integration.services.kms import Emulation, MiniStack
from mqauth.keystore import Keystore
from mqauth.keystore.reference.awskms import client_of

SPECS: Final = {"EdDSA": "ECC_NIST_EDWARDS25519", "ES256": "ECC_NIST_P256", "ES384": "ECC_NIST_P384"}
_NOWHERE: Final = {
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_CONFIG_FILE": "/nonexistent",
}  # fmt: skip
_NAMES: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


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
        spec: of the key, in place of that of the algorithm.
    """

    kms: Emulation
    folder: Path
    algorithm: str = "ES256"
    spec: str = ""
    usage: str = "SIGN_VERIFY"

    def __post_init__(self) -> None:
        self.client = self.kms.client()
        self.arn = self.make()
        self.store = Keystore(folder=self.folder / "keys")

    def make(self) -> str:
        """Make a key, and return its ARN."""
        spec = self.spec or SPECS[self.algorithm]
        made = self.client.create_key(KeySpec=spec, KeyUsage=self.usage)
        return str(made["KeyMetadata"]["Arn"])

    def alias(self) -> str:
        """Make an alias of the key, and return its ARN."""
        name = f"alias/orders-{secrets.token_hex(6)}"
        self.client.create_alias(AliasName=name, TargetKeyId=self.arn)
        return f"{self.arn.partition(':key/')[0]}:{name}"

    def uri(self, server: str = "", arn: str = "") -> str:
        """Return the reference of the key, or of another ARN, at the emulation or a proxy."""
        return f"awskms:{arn or self.arn}?endpoint={server or self.kms.url}&unsafe_http_loopback=true"


class User:
    """A user of IAM with an access key, who may do some things with a key.

    Args:
        aws: the emulation.
        arn: the key.
        actions: that he may do.
    """

    def __init__(self, aws: MiniStack, arn: str, *actions: str) -> None:
        self._iam, self._arn, self._name = aws.client("iam"), arn, f"user-{secrets.token_hex(6)}"
        self._iam.create_user(UserName=self._name)
        self.may(*actions)
        self.key: dict[str, Any] = self._iam.create_access_key(UserName=self._name)["AccessKey"]

    def may(self, *actions: str) -> None:
        """Let him do these things, and nothing else."""
        statement = {"Effect": "Allow", "Action": [f"kms:{name}" for name in actions], "Resource": self._arn}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self._iam.put_user_policy(UserName=self._name, PolicyName="sign", PolicyDocument=policy)

    def end(self) -> None:
        """Delete his access key."""
        self._iam.delete_access_key(UserName=self._name, AccessKeyId=self.key["AccessKeyId"])

    @property
    def environment(self) -> dict[str, str]:
        """The variables of his processes."""
        return {
            "AWS_ACCESS_KEY_ID": self.key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": self.key["SecretAccessKey"],
        }  # fmt: skip
