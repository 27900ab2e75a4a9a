"""``mqauth identity show``: what a token of either form, or a WIT, says; nothing of it is verified."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from mqauth.cli.app import Json, answer, group, one_line, standard_input
from mqauth.cli.forms import shown_time
from mqauth.errors import MalformedMessage, Rejection
from mqauth.wire import identity
from mqauth.wire.claims import Batch, Claims
from mqauth.wire.identity import SEPARATOR
from mqauth.wire.jws import MAX_TOKEN

app = group("Print what an identity or a token says.", "mqauth identity show -")
_INPUT: Final = "-"
_TIMES: Final = ("issued", "begins", "expires")


@app.command("show")
def show(
    token: Annotated[str, typer.Argument(help="A token or a WIT; - reads it from standard input.")] = _INPUT,
    as_json: Json = False,
) -> None:
    """Print what a token or a WIT says, without verifying any of it.

    Of a token in the identity form it tells whether its proof belongs to its WIT. Prefer standard input: arguments
    stand in the list of processes.
    """
    raw = standard_input().read(MAX_TOKEN + 2) if token == _INPUT else token.encode("utf-8", "backslashreplace")
    try:
        found = described(raw.strip())
    except Rejection as error:
        where = "standard input" if token == _INPUT else "the argument (for a file: mqauth identity show - < FILE)"
        raise MalformedMessage(f"{where}: {error.reason}: {error.detail}") from error
    answer(as_json, found, "\n".join(("nothing of this is verified: anybody may have written it", *_lines(found))))


def described(token: bytes) -> dict[str, Any]:
    """Return what a token or a WIT says, as JSON values.

    Args:
        token: its bytes, as they stand in a header.

    Raises:
        Rejection: it cannot be parsed, as a consumer would say.
    """
    first, _, rest = token.partition(SEPARATOR)
    if not identity.is_wit(first):
        opened, claims = identity.opened_token(token)
        direct = {"issuer": claims.iss, "subject": claims.sub, "kid": opened.kid, "algorithm": opened.algorithm}
        return {"form": "direct", "verified": False, "token": direct | _proof(claims)}
    wit = identity.parse_wit(first)
    found: dict[str, Any] = {"form": "identity", "verified": False}
    said = wit.identity
    found["identity"] = {
        "subject": said.subject,
        "trust_domain": said.trust_domain,
        "authority_kid": said.kid,
        "authority_algorithm": wit.opened.algorithm,
        "algorithm": wit.jwk["alg"],
        "jkt": said.jkt,
        "issued": said.issued,
        "begins": wit.begins,
        "expires": said.expires,
        "jti": said.jti,
        "iss": said.iss,
        "claims": dict(said.claims),
        "bytes": len(wit.text),
    }
    if rest:
        proof = identity.parse_proof(identity.open_proof(rest.partition(SEPARATOR)[0]))
        found["proof"] = {"algorithm": proof.opened.algorithm} | _proof(proof.claims)
        found["proof_belongs_to_identity"] = proof.wth == wit.digest
    return found


def _proof(claims: Claims) -> dict[str, Any]:
    """Return what a token says of its message; of a batch only its proof says which message it binds."""
    mqa = claims.mqa
    bound: dict[str, Any] = {"batch": mqa.size} if isinstance(mqa, Batch) else {"destination": mqa.dst}
    return {
        "audience": claims.aud,
        "issued": claims.iat,
        "begins": claims.nbf,
        "expires": claims.exp,
        "jti": claims.jti,
        **bound,
        "covered": list(mqa.hdr),
        "claims": dict(claims.extra),
    }


def _lines(found: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, value in found.items():
        if isinstance(value, dict) and value and name != "claims":
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        elif value not in (None, [], {}):
            shown = shown_time(value) if name in _TIMES else value
            lines.append(indent + one_line(f"{name.replace('_', ' ')}: {shown}"))
    return lines
