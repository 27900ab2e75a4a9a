"""``mqauth sign`` and ``mqauth verify``: messages in the JSON form in, messages with a token or verdicts out.

``mqauth identity show`` prints what a token of either form, or a WIT, says; nothing of it is verified.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any, Final

import typer

from mqauth import MalformedMessage, Outcome, Reason, Verdict, load
from mqauth.cli.app import (
    MAX_INPUT,
    Config,
    Json,
    answer,
    group,
    parsed,
    print_json,
    read_texts,
    standard_input,
)
from mqauth.cli.forms import one_line, shown_time
from mqauth.cli.settings import file_of
from mqauth.clock import SYSTEM_CLOCK
from mqauth.errors import Rejection, refusing, require
from mqauth.flow import run
from mqauth.logs import harmless
from mqauth.signer import Prepared
from mqauth.wire import identity, json_form, jws, strict_json
from mqauth.wire.claims import MAX_BATCH, Batch, Claims
from mqauth.wire.message import NO_ORIGIN, Origin

Lines = Annotated[bool, typer.Option("--lines", help="One message a line.")]


def sign(
    config: Config = None,
    lines: Lines = False,
    batch: Annotated[
        int,
        typer.Option(
            "--batch",
            min=1,
            max=MAX_BATCH,
            help="Messages that share one signature, with --lines.",
        ),
    ] = 1,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", help="Destination of one message, whose body is standard input."
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Kafka record key, with --to.")
    ] = None,
) -> None:
    """Read messages as JSON and print them with a token in their headers.

    The first message that cannot be signed ends it; the messages before it are signed and printed.
    """
    require(batch == 1 or lines, "--batch: only with --lines")
    require(
        to is None or not lines,
        "--lines: not with --to, where all of standard input is one body",
    )
    require(
        key is None or (to or "").startswith("kafka:"),
        "--key: only with --to kafka:TOPIC",
    )
    signer = load(file_of(config)).signer
    fault: MalformedMessage | None = None
    texts = read_texts(standard_input(), lines=lines)
    if to is not None:
        _, body = next(texts)
        require(body is not None, f"the body is over {MAX_INPUT} bytes", MalformedMessage)
        message_form = {
            "destination": to,
            "body": base64.b64encode(body or b"").decode("ascii"),
        }
        if key is not None:
            message_form["key"] = base64.b64encode(
                key.encode("utf-8", "surrogateescape")
            ).decode("ascii")
        texts = iter([(1, strict_json.dumps(message_form))])
    while fault is None and (texts_of_batch := list(islice(texts, batch))):
        origins = [
            f"line {number}" if lines else "standard input"
            for number, _ in texts_of_batch
        ]
        forms: list[dict[str, Any]] = []
        prepared: list[Prepared] = []
        for (_, raw), where in zip(texts_of_batch, origins, strict=True):
            try:
                form = parsed(raw)
                require(
                    isinstance(form, dict), "a message is an object", MalformedMessage
                )
                prepared.append(signer.prepare(json_form.from_form(form)))
            except MalformedMessage as error:
                # Those before it are signed first.
                fault = MalformedMessage(f"{where}: {error}")
                break
            forms.append(form)
        try:
            sealed = signer.seal(prepared)
        except MalformedMessage as error:
            raise MalformedMessage(f"{origins[0]}: {error}") from error
        for form, message in zip(forms, sealed, strict=True):
            # The token header is appended; everything else stays as it was read.
            name, token = message.headers[-1]
            print_json(
                form
                | {
                    "headers": [
                        *form.get("headers", []),
                        [
                            name,
                            {
                                "str": (
                                    token.decode("ascii")
                                    if isinstance(token, bytes)
                                    else token
                                )
                            },
                        ],
                    ]
                }
            )
    if fault is not None:
        raise fault


def verify(
    config: Config = None,
    lines: Lines = False,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit with 0 whatever the verdicts.")
    ] = False,
) -> int:
    """Read messages as JSON and print the verdict on each.

    With --lines the messages share one replay store, as in a running consumer. A message without any origin, such
    as sign prints, is judged as if a broker had taken it now. Exits with 1 where a message was rejected, else with
    3 where one was deferred or a duplicate, else with 0.
    """
    pipeline = load(file_of(config)).judge
    verdicts: set[Verdict] = set()
    for _, raw in read_texts(standard_input(), lines=lines):
        try:
            message = json_form.from_form(parsed(raw))
        except MalformedMessage as error:
            # A text that is no message is rejected like any malformed message.
            outcome = Outcome(
                verdict=Verdict.REJECTED,
                reason=Reason.MESSAGE_MALFORMED,
                detail=str(error),
            )
        else:
            if message.origin == NO_ORIGIN:
                message = replace(
                    message,
                    origin=Origin(
                        timestamp_ms=int(SYSTEM_CLOCK.now() * 1000),
                        timestamp_type="append",
                    ),
                )
            # A message that is accepted is confirmed, as by a consumer whose handler succeeds.
            delivery = pipeline.receive(message)
            outcome = run(pipeline.judge(delivery))
            outcome = (
                run(pipeline.confirm(delivery))
                if outcome.verdict is Verdict.ACCEPTED
                else outcome
            )
        # The claims of a message that was not accepted may be forged, so they are left out.
        accepted = outcome.verdict is Verdict.ACCEPTED and outcome.verified is not None
        reason = outcome.cause if outcome.verdict is Verdict.DEFERRED else outcome.reason
        print_json(
            {
                "verdict": outcome.verdict.value,
                "reason": None if reason is None else reason.value,
                "detail": None if outcome.detail is None else harmless(outcome.detail),
                "claims": outcome.verified.claims.as_dict()
                if accepted and outcome.verified is not None
                else None,
            }
        )
        verdicts.add(outcome.verdict)
    if exit_zero:
        return 0
    return (
        1
        if Verdict.REJECTED in verdicts
        else 3
        if {Verdict.DEFERRED, Verdict.DUPLICATE} & verdicts
        else 0
    )


app = group("Print what an identity or a token says.", "mqauth identity show -")
_INPUT: Final = "-"


@app.command("show")
def show(
    token: Annotated[
        str, typer.Argument(help="A token or a WIT; - reads it from standard input.")
    ] = _INPUT,
    as_json: Json = False,
) -> None:
    """Print what a token or a WIT says, without verifying any of it.

    Of a token in the identity form it tells whether its proof belongs to its WIT. Prefer standard input: arguments
    stand in the list of processes.
    """
    raw = (
        standard_input().read(jws.MAX_TOKEN + 2)
        if token == _INPUT
        else token.encode("utf-8", "backslashreplace")
    )
    where = (
        "standard input"
        if token == _INPUT
        else "the argument (for a file: mqauth identity show - < FILE)"
    )
    with refusing(
        Rejection,
        lambda error: f"{where}: {error.reason}: {error.detail}",
        MalformedMessage,
    ):
        description = described(raw.strip())
    answer(
        as_json,
        description,
        "\n".join(
            (
                "nothing of this is verified: anybody may have written it",
                *_lines(description),
            )
        ),
    )


def described(token: bytes) -> dict[str, Any]:
    """Return what a token or a WIT says, as JSON values.

    Args:
        token: its bytes, as they stand in a header.

    Raises:
        Rejection: it cannot be parsed, as a consumer would say.
    """
    first, _, rest = token.partition(identity.SEPARATOR)
    if not identity.is_wit(first):
        opened, claims = identity.opened_token(token)
        direct = {
            "issuer": claims.iss,
            "subject": claims.sub,
            "kid": opened.kid,
            "algorithm": opened.algorithm,
        }
        return {"form": "direct", "verified": False, "token": direct | _proof(claims)}
    wit = identity.parse_wit(first)
    who = wit.identity
    description: dict[str, Any] = {
        "form": "identity",
        "verified": False,
        "identity": {
            "subject": who.subject,
            "trust_domain": who.trust_domain,
            "authority_kid": who.kid,
            "authority_algorithm": wit.opened.algorithm,
            "algorithm": wit.jwk["alg"],
            "jkt": who.jkt,
            "issued": who.issued,
            "begins": wit.begins,
            "expires": who.expires,
            "jti": who.jti,
            "iss": who.iss,
            "claims": dict(who.claims),
            "bytes": len(wit.text),
        },
    }
    if rest:
        proof = identity.parse_proof(
            identity.open_proof(rest.partition(identity.SEPARATOR)[0])
        )
        description["proof"] = {"algorithm": proof.opened.algorithm} | _proof(
            proof.claims
        )
        description["proof_belongs_to_identity"] = proof.wth == wit.digest
    return description


def _proof(claims: Claims) -> dict[str, Any]:
    """Return what a token says of its message; of a batch only its proof says which message it binds."""
    mqa = claims.mqa
    bound: dict[str, Any] = (
        {"batch": mqa.size} if isinstance(mqa, Batch) else {"destination": mqa.dst}
    )
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


def _lines(description: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, value in description.items():
        if isinstance(value, dict) and value and name != "claims":
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        elif value not in (None, [], {}):
            shown = (
                shown_time(value) if name in ("issued", "begins", "expires") else value
            )
            lines.append(indent + one_line(f"{name.replace('_', ' ')}: {shown}"))
    return lines
