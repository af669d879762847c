"""The documents that people write, as typed, frozen models: CrawlSource, CrawlBatch and Secret, read strictly.

A model refuses what it was not made for, and so does Kubernetes, by the schema and the CEL rules that `crds.py`
takes from here. What follows from a spec alone (caps, exits, proxy addresses) stands here too. `documents.py`
reads them from files and puts what is wrong into words. Whether an adapter likes its
`options` and what the database holds is for others to say. No repr holds a value of a Secret.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, quote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from pydantic_core.core_schema import ValidationInfo

from crawlfleet.errors import BadInput

GROUP, VERSION = "crawlfleet.dev", "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
MALL_ID = "{mall_id}"
LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
INT32 = 2**31 - 1
INT64 = 2**63 - 1
_DAY_S = 86_400
_DEFAULT_PORTS = {"http": 80, "https": 443}


# Leaves. Each says what it expects in words, since pydantic's own message names only the rule that failed.


def _validations(*rules: tuple[str, str]) -> dict[str, Any]:
    """For Kubernetes, what a schema cannot say: rules in CEL, each with the sentence that a breach is refused with.

    The Python that says the same stands beside it.
    """
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]}


def _rules(*rules: tuple[str, str]) -> ConfigDict:
    """The same, of a model."""
    return ConfigDict(json_schema_extra=_validations(*rules))


def _name_rule(most: int) -> tuple[str, str]:
    return (
        f"self.metadata.name.size() <= {most} && self.metadata.name.matches('{LABEL}')",
        f"metadata.name must be at most {most} lower-case letters, digits and inner hyphens",
    )


def _broken(rule: str) -> PydanticCustomError:
    """An error whose text is shown as it is."""
    return PydanticCustomError("rule", "{rule}", {"rule": rule})


def _expecting(what: str) -> Callable[[Any, ValidatorFunctionWrapHandler], Any]:
    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("expected", "expected {expected}", {"expected": what}) from None

    return check


@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`; neither text nor a boolean passes for one."""

    low: int
    high: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        number = core_schema.int_schema(strict=True, ge=self.low, le=self.high)
        check = _expecting(f"a whole number from {self.low} to {self.high}")
        return core_schema.no_info_wrap_validator_function(check, number)


@dataclass(frozen=True)
class Distinct:
    """A list of `least` to `most` values, no two of them the same: in themselves, or in their field `key`."""

    most: int
    least: int = 1
    key: str | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        values: Any = {
            **handler(source),
            "strict": False,
            "min_length": self.least,
            "max_length": self.most,
        }
        return core_schema.no_info_after_validator_function(self._refuse_twice, values)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        values = handler(schema)
        if self.key is None:
            return values | {"x-kubernetes-list-type": "set"}
        return values | {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [self.key]}

    def _refuse_twice(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        named = [value if self.key is None else getattr(value, self.key) for value in values]
        if twice := sorted({name for name, times in Counter(named).items() if times > 1}):
            raise _broken(f"names {', '.join(map(str, twice))} twice")
        return values


def _check_true(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    # A literal alone would let 1 pass, since it equals True.
    if value is not True:
        raise PydanticCustomError("expected", "expected {expected}", {"expected": "true"})
    return handler(value)


# Patterns of an address's parts, as CEL reads them; the port is 1 to 65535.
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_USER = "[^/?#]*@"
_HOST = r"(\[[0-9a-f:.]+\]|[^/?#@:\[\]]+)"
_BASE_URL_RULES = _validations(
    (
        f"self.matches(r'(?i)^https?://({_USER})?{_HOST}(:{_PORT}?)?([/?#]|$)')"
        r" && !self.matches(r'[[:cntrl:]\s\\]')",
        "baseURL must be an http:// or https:// address with a host",
    ),
    (
        f"!self.matches('^[^/?#]*//{_USER}')",
        "baseURL must not hold a user name or password: credentials belong in accounts and Secrets",
    ),
    ("!self.matches('[?#]')", "baseURL must end with the path, without ? or #"),
    (
        f"!self.replace('{MALL_ID}', '').matches('[{{}}]')",
        f"baseURL may hold the placeholder {MALL_ID} and no other braces",
    ),
)


def _check_base_url(url: str) -> str:
    """Refuse what cannot be the start of a request's address; the text itself is never repeated."""
    parts = _split(url)
    if parts is None or not parts.hostname:
        raise _broken("expected an http:// or https:// address with a host")
    if "@" in parts.netloc:
        raise _broken("holds a user name or password; credentials belong in accounts and Secrets")
    if set("?#") & set(url):
        raise _broken("must end with the path, without ? or #")
    if set("{}") & set(url.replace(MALL_ID, "")):
        raise _broken(f"may hold the placeholder {MALL_ID} and no other braces")
    return url


def _split(url: str) -> SplitResult | None:
    """The parts of an http or https URL, None if it is not one."""
    if re.search(r"[\s\\\x00-\x1f\x7f]", url):
        return None
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _DEFAULT_PORTS and parts.port != 0
    except ValueError:
        return None
    return parts if usable else None


def _check_base64(value: SecretStr) -> SecretStr:
    if _decoded(value) is None:
        raise _broken("expected base64 text (plain text belongs in stringData)")
    return value


def _decoded(value: SecretStr) -> bytes | None:
    try:
        return base64.b64decode("".join(value.get_secret_value().split()), validate=True)
    except (binascii.Error, ValueError):
        return None


Label = Annotated[
    str,
    Field(pattern=LABEL, max_length=63),
    WrapValidator(_expecting("a name of at most 63 lower-case letters, digits and inner hyphens")),
]
Text = Annotated[str, Field(min_length=1, max_length=253), WrapValidator(_expecting("text"))]
Flag = Annotated[bool, WrapValidator(_expecting("true or false"))]
Tier = Literal["HIGH", "MEDIUM", "LOW"]
Stop = Literal["None", "Drain", "Cancel"]
Seconds = Annotated[int, Whole(1, INT32)]
Pace = Annotated[
    float,
    Field(ge=0.001, le=1_000_000),
    WrapValidator(_expecting("a number from 0.001 to 1000000")),
]
BaseURL = Annotated[
    str,
    Field(max_length=1024, json_schema_extra=_BASE_URL_RULES),
    WrapValidator(_expecting("text of at most 1024 characters")),
    AfterValidator(_check_base_url),
]
Base64 = Annotated[SecretStr, AfterValidator(_check_base64)]


# The documents.


class Model(BaseModel):
    """camelCase outside, snake_case inside; nothing unknown, nothing coerced, nothing changed later."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, strict=True, hide_input_in_errors=True
    )


class Metadata(Model):
    name: Label
    namespace: Label | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class SecretRef(Model):
    """The Secret with the keys `url`, `username` and `password` of a proxy."""

    name: Label


class Egress(Model):
    """One exit IP: direct, or a proxy."""

    name: Label
    proxy_secret_ref: SecretRef | None = None
    max_concurrent: Annotated[int, Whole(1, 1000)] | None = None


class CoolDown(Model):
    """How long an egress rests after a ban: `first`, then doubling up to `longest`."""

    first: Annotated[int, Whole(1, _DAY_S)] = 60
    longest: Annotated[int, Whole(1, 30 * _DAY_S)] = 3600

    model_config = _rules(
        (
            "self.longest >= self.first",
            "coolDownSeconds.longest must not be below coolDownSeconds.first",
        )
    )

    @model_validator(mode="after")
    def _check_order(self) -> CoolDown:
        if self.longest < self.first:
            raise _broken(f"longest ({self.longest}) must not be below first ({self.first})")
        return self


class BudgetSpec(Model):
    """What a task may have before it is dead: further tries after `retry`, after `crashed`, seconds of throttling."""

    retry: Annotated[int, Whole(0, 100)] = 4
    crashed: Annotated[int, Whole(0, 100)] = 5
    throttled_seconds: Annotated[int, Whole(0, 7 * _DAY_S)] = 3600


class CrawlSourceSpec(Model):
    """How a platform may be crawled: `maxConcurrent` by the whole fleet (0 pauses), `requestsPerSecond` by each egress."""

    adapter: Text
    base_url: BaseURL | None = Field(default=None, alias="baseURL")
    max_concurrent: Annotated[int, Whole(0, 1000)]
    requests_per_second: Pace | None = None
    egresses: Annotated[tuple[Egress, ...], Distinct(100, key="name")] = (Egress(name="direct"),)
    job_timeout_seconds: Annotated[int, Whole(1, _DAY_S)] = 600
    retention_days: Annotated[int, Whole(1, 3650)] | None = None
    cool_down_seconds: CoolDown = CoolDown()
    budgets: BudgetSpec = BudgetSpec()
    options: dict[str, JsonValue] = {}

    model_config = _rules(
        (
            "self.maxConcurrent == 0 || self.maxConcurrent >="
            " self.egresses.map(egress, has(egress.maxConcurrent) ? egress.maxConcurrent : 1).sum()",
            "egresses must fit into the source's maxConcurrent: the sum of their own maxConcurrent, and at least 1 for"
            " each egress without one, must not exceed it",
        )
    )

    @field_validator("egresses")
    @classmethod
    def _check_caps(cls, egresses: tuple[Egress, ...], info: ValidationInfo) -> tuple[Egress, ...]:
        if "max_concurrent" in info.data:
            try:
                _caps(info.data["max_concurrent"], egresses)
            except BadInput as exc:
                raise _broken(str(exc)) from None
        return egresses


class CrawlSource(Model):
    """A platform, and how it may be crawled."""

    model_config = _rules(_name_rule(63))

    api_version: Literal["crawlfleet.dev/v1alpha1"]
    kind: Literal["CrawlSource"]
    metadata: Metadata
    spec: CrawlSourceSpec


class IdModulo(Model):
    """The users with `id mod divisor = remainder`."""

    divisor: Annotated[int, Whole(1, INT32)]
    remainder: Annotated[int, Whole(0, INT32)]

    model_config = _rules(
        ("self.remainder < self.divisor", "idModulo.remainder must be below idModulo.divisor")
    )

    @model_validator(mode="after")
    def _check_remainder(self) -> IdModulo:
        if self.remainder >= self.divisor:
            raise _broken(f"remainder ({self.remainder}) must be below divisor ({self.divisor})")
        return self


class Users(Model):
    """Which users a batch crawls; exactly one field is set."""

    all: Annotated[Literal[True], WrapValidator(_check_true)] | None = None
    tiers: Annotated[tuple[Tier, ...], Distinct(3)] | None = None
    ids: Annotated[tuple[Annotated[int, Whole(1, INT64)], ...], Distinct(1000)] | None = None
    id_modulo: IdModulo | None = None

    model_config = _rules(
        (
            "[has(self.all), has(self.tiers), has(self.ids), has(self.idModulo)].filter(set, set).size() == 1",
            "users must have exactly one of the fields all, tiers, ids and idModulo",
        )
    )

    @model_validator(mode="after")
    def _check_one(self) -> Users:
        if sum(value is not None for value in (self.all, self.tiers, self.ids, self.id_modulo)) != 1:
            raise _broken("expected exactly one of all, tiers, ids, idModulo")
        return self


class PodMetadata(Model):
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class PodTemplate(Model):
    """What the pods have besides, as Kubernetes has it. Known by name: the container `crawler`, the initContainer `chrome`."""

    metadata: PodMetadata | None = None
    spec: dict[str, JsonValue] | None = None


class CrawlBatchSpec(Model):
    """Whom to crawl, once. `maxConcurrent` holds for each worker."""

    model_config = _rules(
        (
            "self.sources == oldSelf.sources",
            "sources is immutable: a batch of other sources needs another name",
        ),
        ("self.users == oldSelf.users", "users is immutable: a batch of other users needs another name"),
    )

    sources: Annotated[tuple[Label, ...], Distinct(20)]
    users: Users = Users(all=True)
    workers: Annotated[int, Whole(1, 1000)] = 2
    max_concurrent: Annotated[int, Whole(1, 1000)] = 10
    suspend: Flag = False
    stop: Stop = "None"
    active_deadline_seconds: Seconds | None = None
    start_deadline_seconds: Seconds | None = None
    ttl_seconds_after_finished: Annotated[int, Whole(0, INT32)] | None = None
    template: PodTemplate = PodTemplate()


class CrawlBatch(Model):
    """One crawl of the chosen users' accounts at its sources, to its end."""

    # The names of its Jobs and pods, at most 63 characters long, begin with this one.
    model_config = _rules(_name_rule(45))

    api_version: Literal["crawlfleet.dev/v1alpha1"]
    kind: Literal["CrawlBatch"]
    metadata: Metadata
    spec: CrawlBatchSpec


class Secret(Model):
    """A Kubernetes Secret; `stringData` wins over `data`, as in the cluster."""

    api_version: Literal["v1"]
    kind: Literal["Secret"]
    metadata: Metadata
    type: Text = "Opaque"
    immutable: Flag = False
    data: dict[str, Base64] = {}
    string_data: dict[str, SecretStr] = {}

    def text(self, key: str) -> str | None:
        """The value of that key, None if it is absent. Raises BadInput if it is not UTF-8 text of one line."""
        if key in self.string_data:
            text: str | None = self.string_data[key].get_secret_value()
        elif key in self.data:
            text = _utf8(_decoded(self.data[key]))
        else:
            return None
        if text is None or not text.isprintable():
            raise BadInput(
                f"Secret/{self.metadata.name}: the value of {key!r} must be one line of UTF-8 text, without a line break"
                " at its end (echo adds one, printf does not)"
            )
        return text


def _utf8(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return None


# What follows from them.


def egress_caps(spec: CrawlSourceSpec) -> dict[str, int]:
    """Egress name → how many crawls it may run at once; all 0 if the source is paused.

    What the explicit caps leave over is shared evenly by the others, the first ones get one more.
    """
    return _caps(spec.max_concurrent, spec.egresses)


def _caps(max_concurrent: int, egresses: Sequence[Egress]) -> dict[str, int]:
    if max_concurrent == 0:
        return {egress.name: 0 for egress in egresses}
    caps = {egress.name: egress.max_concurrent or 0 for egress in egresses}
    open_names = [egress.name for egress in egresses if egress.max_concurrent is None]
    left = max_concurrent - sum(caps.values())
    if left < 0:
        raise BadInput(
            f"their maxConcurrent sum to {sum(caps.values())}, more than the source's {max_concurrent}"
        )
    if left < len(open_names):
        raise BadInput(
            f"{left} of the source's maxConcurrent {max_concurrent} is left for {', '.join(open_names)};"
            " each egress needs at least 1"
        )
    for index, name in enumerate(open_names):
        caps[name] = left // len(open_names) + (index < left % len(open_names))
    return caps


def exit_identity(adapter: str, base_url: str | None, egress_proxy_url: str | None) -> str:
    """Names one exit: the platform's host as seen through one IP. Two egresses with the same name share a ban.

    Without an address the adapter's name stands for its platform. No part of it is secret.
    """
    platform = adapter if base_url is None else _address(base_url)
    way_out = "direct" if egress_proxy_url is None else _address(egress_proxy_url, always_port=True)
    return f"{platform} via {way_out}"


def _address(url: str, *, always_port: bool = False) -> str:
    """Host in lower case, and its port unless that is the scheme's own."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    own_port = _DEFAULT_PORTS[parts.scheme]
    port = parts.port or own_port
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}" if always_port or port != own_port else shown


@dataclass(frozen=True)
class Manifests:
    """Everything that the given files declare; sources and secrets by name, batches in the files' order.

    `places` says where a document stands, by KIND/NAME.
    """

    sources: Mapping[str, CrawlSource] = field(default_factory=dict)
    batches: Sequence[CrawlBatch] = ()
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)

    def place_of(self, document: CrawlSource | CrawlBatch) -> str:
        """File, document, kind and name, as an error names them."""
        title = f"{document.kind}/{document.metadata.name}"
        return self.places.get(title, title)


def proxy_url(manifests: Manifests, egress: Egress) -> str | None:
    """The egress's proxy with its credentials, `http://user:password@host:port`; None if it goes out directly.

    The result is a secret. Raises BadInput, without a value, if the Secret or one of its keys is missing or wrong.
    A proxy without authentication has an empty username and password.
    """
    if egress.proxy_secret_ref is None:
        return None
    name = egress.proxy_secret_ref.name
    secret = manifests.secrets.get(name)
    if secret is None:
        raise BadInput(f"egress {egress.name!r}: there is no Secret/{name} in the given files")
    values = {key: secret.text(key) for key in ("url", "username", "password")}
    missing = [key for key, value in values.items() if value is None]
    if missing:
        raise BadInput(
            f"Secret/{name}: missing {', '.join(missing)}; a proxy needs url, username and password"
        )
    return _with_user(name, values["url"] or "", values["username"] or "", values["password"] or "")


def _with_user(name: str, url: str, username: str, password: str) -> str:
    parts = _split(url)
    if parts is None or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise BadInput(f"Secret/{name}: url must be http://HOST:PORT or https://HOST:PORT")
    if "@" in parts.netloc:
        raise BadInput(f"Secret/{name}: url must not hold a user; put it into username and password")
    if password and not username:
        raise BadInput(f"Secret/{name}: username is empty, but password is not")
    user = f"{quote(username, safe='')}:{quote(password, safe='')}@" if username else ""
    return f"{parts.scheme}://{user}{parts.netloc}"
