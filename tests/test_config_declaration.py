"""Settings said once: what follows from a declaration, and that every declaration of ours is whole."""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pytest
from jsonschema import Draft202012Validator

from integration import settings as reference
from integration.settings_examples import EXAMPLES, UNITS, of
from mqauth.audit.file import AuditFile, HeadFile
from mqauth.audit.misuse import Thresholds
from mqauth.audit.sinks import FloodGate
from mqauth.config.broker import BrokerSettings, ReviewSettings
from mqauth.config.consumer_settings import (
    AcceptAsSettings,
    ConsumerSettings,
    OPASettings,
    RolloutSettings,
    RuleSettings,
    UnsignedSettings,
)
from mqauth.config.declaration import (
    Setting,
    Settings,
    inner,
    inners,
    not_with,
    only_with,
    read,
    schema_of,
)
from mqauth.config.issuer_settings import CredentialSettings as AuthorityCredentials
from mqauth.config.issuer_settings import (
    GrantSettings,
    IdentityAuthoritySettings,
    IdentityCredentialSettings,
    IdentitySettings,
    IssuerSettings,
)
from mqauth.config.kinds import (
    BROKER_URL,
    FLAG,
    NAME,
    PATH,
    POSITIVE,
    Kind,
    choice,
    entries,
    many,
    one_or_many,
    seconds,
    text_or_table,
    url,
    whole,
)
from mqauth.config.settings import (
    AuditSettings,
    AuthoritySettings,
    CheckSettings,
    DeadLettersSettings,
    FileSettings,
    MisuseSettings,
    ProducerSettings,
    ReleaseSettings,
    ReplaySettings,
)
from mqauth.config.toml_file import RefusedSetting, Table
from mqauth.console.oidc import OIDCSettings, RoleSettings
from mqauth.judging.identities import TrustDomain
from mqauth.judging.pipeline import Pipeline
from mqauth.judging.policy import Rule
from mqauth.judging.rollout import AcceptAs, Exemption, RolloutEntry
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.keystore.identity.identity_key import IdentityKey
from mqauth.keystore.identity.request import ClientCredentials, OwnKey
from mqauth.keystore.remote.jwks import JWKS
from mqauth.letters.authorities import Authority
from mqauth.policies.opa import OPA
from mqauth.replay.memory import MemoryReplayStore
from mqauth.signer import Signer

SOURCE = {"table", "issuer", "file", "jwks", "discovery"}
OBJECTS: dict[type[Settings], tuple[tuple[Callable[..., object], ...], set[str]]] = {
    ProducerSettings: ((Signer,), {"keys", "identity", "batch", "linger", "passphrase_env", "passphrase_file"}),
    IdentitySettings: ((IdentityKey,), set()),
    IdentityCredentialSettings: ((OwnKey, ClientCredentials), {"token_file"}),
    ConsumerSettings: ((Verifier, Pipeline), {"issuers", "allow", "opa", "unsigned"}),
    IssuerSettings: ((Issuer, TrustDomain, JWKS), SOURCE | {"trust_domain"}),
    AuthoritySettings: ((Authority, JWKS), SOURCE),
    RuleSettings: ((Rule,), set()),
    OPASettings: ((OPA,), set()),
    RolloutSettings: ((RolloutEntry,), {"from", "accepted"}),
    UnsignedSettings: ((Exemption,), set()),
    AcceptAsSettings: ((AcceptAs,), set()),
    MisuseSettings: ((Thresholds,), set()),
    ReplaySettings: ((MemoryReplayStore,), {"store", "file"}),
    AuditSettings: (
        (AuditFile, FloodGate, Pipeline),
        {"file", "unsafe_no_fsync", "heads", "heads_key", "heads_every", "heads_seconds",
         "heads_passphrase_env", "heads_passphrase_file"},
    ),
}  # fmt: skip
"""The objects that take a table's settings as arguments of the same names, and the settings used otherwise."""
DECLARED = (
    *OBJECTS, CheckSettings, DeadLettersSettings, FileSettings, ReleaseSettings, BrokerSettings,
    ReviewSettings,
    OIDCSettings, RoleSettings, IdentityAuthoritySettings, AuthorityCredentials, GrantSettings,
)  # fmt: skip


def every_setting() -> list[Any]:
    """Return the settings of all tables."""
    return [
        pytest.param(name, setting, id=f"{declared.__name__}.{name}")
        for declared in DECLARED
        for name, setting in declared.settings().items()
    ]


# --- the declarations of ours -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "made"), [(reference.PAGE, reference.page), (reference.SCHEMA, None)]
)
def test_the_reference_is_what_the_code_says(
    path: Path, made: Callable[[], str] | None
) -> None:
    """Page and schema are what ``python -m integration.settings`` writes from the declarations."""
    wanted = json.dumps(reference.schema(), indent=2) + "\n" if made is None else made()
    assert path.read_text("utf-8") == wanted, (
        "python -m integration.settings writes it anew"
    )


def settings_of(
    name: str, table: dict[str, Any]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield table, key and schema of each setting."""
    for key, said in table["properties"].items():
        inner = said.get("items", said)
        if "properties" in inner:
            yield from settings_of(f"{name}.{key}".lstrip("."), inner)
        elif "properties" not in (said.get("additionalProperties") or {}):
            yield name, key, said


def test_every_setting_has_an_example_that_fits() -> None:
    """The page's example of each setting is TOML that its schema accepts, and no example is of no setting."""
    used = set[str]()
    for declared in (reference.FileSettings, reference.OIDCSettings):
        for table, key, said in settings_of("", schema_of(declared)):
            used |= {f"{table}.{key}"} & EXAMPLES.keys() or {key}
            value = of(EXAMPLES, table, key)
            Draft202012Validator(said).validate(value)
            assert tomllib.loads(f"x = {reference.toml(value)}"), (table, key)
    assert EXAMPLES.keys() <= used


def test_every_setting_that_measures_has_a_unit() -> None:
    """A number says in which unit it is."""
    numbers = {
        f"{table}.{key}"
        for declared in (reference.FileSettings, reference.OIDCSettings)
        for table, key, said in settings_of("", schema_of(declared))
        if said.get("type") in ("integer", "number") and of(UNITS, table, key) is None
    }
    assert numbers == set()


def test_the_schema_is_one() -> None:
    """The file is a JSON Schema of the draft it names."""
    Draft202012Validator.check_schema(json.loads(reference.SCHEMA.read_text("utf-8")))


@pytest.mark.parametrize(("name", "setting"), every_setting())
def test_a_declaration_is_whole(name: str, setting: Setting) -> None:
    """Each setting has a kind, one sentence of help that fits a line, and a default within its own bounds."""
    assert isinstance(setting.kind, Kind)
    assert setting.help.endswith(".")
    assert "\n" not in setting.help
    assert len(setting.help) <= 100
    if isinstance(setting.default, bool | int | float | str):
        table = Table(file="mqauth.toml", members={name: setting.default})
        assert setting.kind.read(table, name, setting.default) == setting.default


@pytest.mark.parametrize(("name", "setting"), every_setting())
def test_what_the_schema_refuses_is_refused(name: str, setting: Setting) -> None:
    """A value of a wrong type or beyond a bound is refused at its key, exactly where an editor would mark it."""
    schema = Draft202012Validator(setting.kind.schema)
    numbers = [
        each
        for each in setting.kind.schema.get("anyOf", [setting.kind.schema])
        if "minimum" in each
    ]
    beside = [each["minimum"] + step for each in numbers for step in (-1, 0)]
    beside += [
        each["maximum"] + step for each in numbers if "maximum" in each for step in (0, 1)
    ]
    taken, refusals = list[Any](), list[str]()
    for value in (
        True,
        7,
        1.5,
        -1,
        "",
        "text",
        "t" * 5000,
        [],
        [[]],
        [1],
        {},
        {"a": 1},
        {"a": []},
        *beside,
    ):
        try:
            setting.kind.read(
                Table(file="mqauth.toml", members={name: value}), name, value
            )
            taken.append(value)
        except RefusedSetting as refused:
            refusals.append(str(refused))
    assert all(name in refusal for refusal in refusals)
    assert [value for value in taken if not schema.is_valid(value)] == []
    assert [
        value for value in beside if schema.is_valid(value) and value not in taken
    ] == []


@pytest.mark.parametrize("declared", OBJECTS)
def test_no_setting_is_silent(declared: type[Settings]) -> None:
    """A setting is an argument of an object that its table makes, or one of the few that are used otherwise."""
    objects, otherwise = OBJECTS[declared]
    taken = {name for target in objects for name in inspect.signature(target).parameters}
    assert declared.settings().keys() - taken <= otherwise


@pytest.mark.parametrize("declared", OBJECTS)
def test_defaults_are_those_of_the_objects(declared: type[Settings]) -> None:
    """What is left out of the file is what is left out in code."""
    for target in OBJECTS[declared][0]:
        for name, argument in inspect.signature(target).parameters.items():
            setting = declared.settings().get(name)
            scalar = isinstance(argument.default, bool | int | float | str)
            if setting is not None and scalar:
                assert setting.default == argument.default, (target, name)


def test_defaults_of_heads_are_those_of_the_file() -> None:
    """``heads_every`` and ``heads_seconds`` are the defaults of ``HeadFile``."""
    wanted = inspect.signature(HeadFile).parameters
    found = AuditSettings.settings()
    assert (found["heads_every"].default, found["heads_seconds"].default) == (
        wanted["every"].default, wanted["seconds"].default,
    )  # fmt: skip


# --- what follows from a declaration ----------------------------------------------------------------------


class Colour(StrEnum):
    """A closed list."""

    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel(Settings):
    """One of ``[[wheels]]``."""

    name: Annotated[str, NAME, "Its name."]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bicycle(Settings):
    """A table with one setting of each kind."""

    name: Annotated[str, NAME, "Its name."]
    gears: Annotated[int, whole(1, 30), "Gears.", only_with("chain")] = 1
    chain: Annotated[bool, FLAG, "It has a chain.", not_with("belt")] = False
    belt: Annotated[bool, FLAG, "It has a belt."] = False
    service: Annotated[
        float, seconds(0.5, 3600, fractions=True), "How long a service takes."
    ] = 90.5
    rent: Annotated[int | None, seconds(60, 86_400), "How long it may be rented."] = None
    owners: Annotated[tuple[str, ...], many(NAME), "Who may ride it."] = ()
    colour: Annotated[Colour | None, choice(tuple(Colour)), "Its colour."] = None
    manual: Annotated[Path | None, PATH, "The manual."] = None
    wheels: Annotated[tuple[Wheel, ...], inners(Wheel, 1, "name"), "Its wheels."] = ()
    bell: Annotated[Wheel | None, inner(Wheel), "Its bell."] = None
    weighed: bool = False


def bicycle(text: str) -> Bicycle:
    """Read a table."""
    return read(Bicycle, Table(file="/garage/b.toml", members=tomllib.loads(text)))


def refused(text: str) -> RefusedSetting:
    """Return the refusal of a table."""
    with pytest.raises(RefusedSetting) as caught:
        bicycle(text)
    return caught.value


def test_a_table_is_read_from_its_declaration() -> None:
    """Values come as the objects take them, what is left out has its default, and a field without kind is none."""
    found = bicycle(
        'name = "a"\nservice = 9\nrent = "2h"\nowners = ["b"]\ncolour = "red"\nmanual = "m.txt"\n'
        '[[wheels]]\nname = "w"'
    )
    assert (found.name, found.gears, found.owners, found.manual) == (
        "a",
        1,
        ("b",),
        Path("/garage/m.txt"),
    )
    assert isinstance(found.service, float)
    assert found.rent == 7200
    assert found.colour is Colour.RED
    assert [wheel.name for wheel in found.wheels] == ["w"]
    assert refused('name = "a"\nweighed = true').what.startswith("unknown key")


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        ("", ("name",), "/garage/b.toml: name: required"),
        ('name = "a"\ngear = 2', ("gear",), "/garage/b.toml: gear: unknown key; did you mean gears?"),
        ('name = "a"\ngears = 2', ("gears",), "/garage/b.toml: gears: only with chain"),
        ('name = "a"\nchain = true\ngears = 31', ("gears",), "/garage/b.toml: gears: must be 1 to 30, not 31"),
        ('name = "a"\nchain = true\ngears = true', ("gears",), "gears: must be an integer, not a boolean"),
        ('name = "a"\nchain = true\nbelt = true', ("chain",), "chain: contradicts belt: only one of the two"),
        ('name = "a"\nservice = nan', ("service",), "service: must be 0.5 to 3600, not nan"),
        ('name = "a"\nservice = 2026-11-26', ("service",),
         "service: must be a number (seconds) or a string like \"15m\", not a date or time"),
        ('name = "a"\nrent = true', ("rent",), 'rent: must be an integer (seconds) or a string like "15m"'),
        ('name = "a"\nrent = "2 hours"', ("rent",), 'rent: must be seconds, or a duration like "90s"'),
        ('name = "a"\nrent = "0m"', ("rent",), 'rent: must be seconds, or a duration like "90s"'),
        ('name = "a"\nrent = "2d"', ("rent",), "rent: must be 60 to 86400, not 172800"),
        ('name = "a"\ncolour = "pink"', ("colour",), 'colour: must be "red" or "blue"'),
        ('name = "a"\nwheels = []', ("wheels",), "wheels: must hold at least 1 table"),
        ('name = "a"\n[wheels]\nname = "w"', ("wheels",), "must be an array of tables [[wheels]], not a table"),
        ('name = "a"\n[[wheels]]\n', ("wheels", 0, "name"), "[[wheels]] #1 name: required"),
        ('name = "a"\n[[wheels]]\nname = "w"\n[[wheels]]\nname = "w"', ("wheels", 1, "name"),
         "[[wheels]] #2 name: is configured twice"),
        ('name = "a"\n[bell]\nnaem = "w"', ("bell", "naem"), "[bell] naem: unknown key; did you mean name?"),
        ('name = "a"\nbell = 1', ("bell",), "bell: must be a table, not an integer"),
    ],
)  # fmt: skip
def test_a_refusal_has_its_exact_place(
    text: str, path: tuple[str | int, ...], said: str
) -> None:
    """A refusal names file, table, key and what is wrong, and carries the path that the check points at."""
    found = refused(text)
    assert found.path == path
    assert said in str(found)


def test_an_unknown_key_comes_before_what_is_missing() -> None:
    """A misspelt required key is answered with the key that was meant, not with *required*."""
    assert refused('nmae = "a"').what == "unknown key; did you mean name?"


def test_a_refusal_brings_the_others_of_its_table() -> None:
    """The first refusal is raised, and carries those of the other settings, tables and entries within it."""
    found = refused(
        'name = "a"\nservice = 4000\ncolour = "pink"\n[bell]\n[[wheels]]\n[[wheels]]\nname = 1'
    )
    assert [found.path, *(other.path for other in found.others)] == [
        ("service",), ("colour",), ("wheels", 0, "name"), ("wheels", 1, "name"), ("bell", "name"),
    ]  # fmt: skip


def test_the_schema_follows_from_the_declaration() -> None:
    """Type, bounds, help, what it needs beside it, default, and which settings are required."""
    found = schema_of(Bicycle)
    assert found["required"] == ["name"]
    assert found["properties"]["gears"] == {
        "type": "integer", "minimum": 1, "maximum": 30, "description": "Gears; only with chain.", "default": 1,
    }  # fmt: skip
    assert found["properties"]["wheels"]["items"]["required"] == ["name"]
    assert "weighed" not in found["properties"]
    assert Draft202012Validator(found).is_valid(
        {"name": "a", "owners": ["b"], "bell": {"name": "w"}}
    )
    assert not Draft202012Validator(found).is_valid({"name": "a", "gear": 2})


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (NAME, "hunter2\n"), (PATH, "hunter2\0"), (choice(("a", "b")), "hunter2"), (BROKER_URL, "hunter2"),
        (url("redis", words=("memory",)), "http://hunter2"), (many(NAME), ["hunter2\n"]),
        (one_or_many(NAME), "hunter2\n"),
        (entries(NAME, NAME), {"a": "hunter2\n"}), (text_or_table(choice(("a",)), entries(NAME, NAME)), "hunter2"),
        (POSITIVE, "hunter2"), (FLAG, "hunter2"), (many(NAME), "hunter2"), (inner(Wheel), "hunter2"),
        (inners(Wheel), ["hunter2"]),
    ],
)  # fmt: skip
def test_no_refusal_repeats_a_text(kind: Kind, value: Any) -> None:
    """Whatever a kind refuses, a text is not in the message: it might be a secret."""
    with pytest.raises(RefusedSetting) as caught:
        kind.read(Table(file="mqauth.toml", members={"key": value}), "key", value)
    assert "hunter2" not in str(caught.value)


def test_arguments_are_the_settings_of_the_same_names() -> None:
    """Only what the function takes is handed on."""
    found = bicycle('name = "a"\nchain = true\ngears = 7')

    def ride(name: str, gears: int, speed: int = 1) -> None:
        raise NotImplementedError

    assert found.arguments(ride) == {"name": "a", "gears": 7}
