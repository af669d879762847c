"""Files of documents, read strictly and explained kindly: YAML becomes `Manifests`, or one BadInput.

First step of `crawlfleet run -f FILE`. The error has a line per problem and says what was expected where; the models
are in `manifests.py`. No message holds a value of a Secret, or one that might be a secret in the wrong place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from crawlfleet.errors import BadInput
from crawlfleet.manifests import (
    CrawlBatch,
    CrawlBatchSpec,
    CrawlSource,
    Manifests,
    Secret,
    exit_identity,
    proxy_url,
)

Document = CrawlSource | CrawlBatch | Secret
_MODELS: dict[str, type[Document]] = {"CrawlSource": CrawlSource, "CrawlBatch": CrawlBatch, "Secret": Secret}


@dataclass(frozen=True)
class _Placed:
    """A document and where it stands."""

    place: str
    document: Document

    @property
    def title(self) -> str:
        return f"{self.document.kind}/{self.document.metadata.name}"

    def __str__(self) -> str:
        return f"{self.place}: {self.title}"


def load(paths: Sequence[Path]) -> Manifests:
    """Read and check all documents of these files.

    A batch's sources must be among them: the settings it works from stand there, not in the database.
    Raises BadInput with one line per problem: file, document, kind and name, path, what was expected.
    """
    problems: list[str] = []
    placed: dict[str, _Placed] = {}
    for path in paths:
        try:
            contents = _read(path)
        except BadInput as exc:
            problems.append(str(exc))
            continue
        for number, content in contents:
            problems += _add(f"{path}, document {number}", content, placed)
    manifests = _manifests(placed.values())
    # A reference to a document that could not be read is not worth a second line.
    problems = problems or list(_broken_references(placed.values(), manifests))
    if problems:
        raise BadInput("\n".join(problems))
    return manifests


def _manifests(placed: Collection[_Placed]) -> Manifests:
    documents = [p.document for p in placed]
    return Manifests(
        sources={d.metadata.name: d for d in documents if isinstance(d, CrawlSource)},
        batches=tuple(d for d in documents if isinstance(d, CrawlBatch)),
        secrets={d.metadata.name: d for d in documents if isinstance(d, Secret)},
        places={p.title: str(p) for p in placed},
    )


def _add(place: str, content: Any, placed: dict[str, _Placed]) -> list[str]:
    """Parse one document into `placed` (by kind and name); returns what is wrong with it."""
    document = parse(content)
    if isinstance(document, list):
        return [f"{place}: {problem}" for problem in document]
    new = _Placed(place, document)
    first = placed.setdefault(new.title, new)
    return [] if first is new else [f"{new}: stands already in {first.place}"]


def parse(content: Any) -> Document | list[str]:
    """The document, or what is wrong with it, a line each."""
    if not isinstance(content, dict):
        return [f"expected a mapping with apiVersion, kind and metadata, not {_shown(content)}"]
    kind = content.get("kind")
    model = _MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        told = f"not {_shown(kind)}" if "kind" in content else "but there is no kind"
        return [f"kind: expected {_either(list(_MODELS))}, {told}"]
    try:
        return model.model_validate(content)
    except ValidationError as exc:
        errors = [error for error in exc.errors(include_url=False) if not _is_echo(error)]
    title = _title(content)
    return [f"{title}: {_path(error['loc'])}: {_reason(error, model)}" for error in errors]


def _is_echo(error: ErrorDetails) -> bool:
    """pydantic also calls a list too short if its entries are wrong."""
    return error["type"] == "too_short" and bool(error["input"])


def _title(content: dict[str, Any]) -> str:
    metadata = content.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    usable = isinstance(name, str) and re.fullmatch(r"[\w.-]{1,253}", name, re.ASCII)
    return f"{content['kind']}/{name}" if usable else str(content["kind"])


def _path(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"\w+", part, re.ASCII):
            text += f".{part}"
        else:
            text += f"[{part!r}]"
    return text.removeprefix(".") or "the document"


_EXPECTED_BY_TYPE = {
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "text",
}


def _reason(error: ErrorDetails, model: type[BaseModel]) -> str:
    ctx = error.get("ctx", {})
    expected = _EXPECTED_BY_TYPE.get(error["type"]) or ctx.get("expected")
    if expected:
        return f"expected {expected}, not {_shown_at(error['loc'], error['input'], model)}"
    match error["type"]:
        case "rule":
            return str(ctx["rule"])
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return _unknown(str(error["loc"][-1]), _model_at(model, error["loc"][:-1]))
        case "too_short":
            return "expected at least one entry"
        case "too_long":
            return f"expected at most {ctx['max_length']} entries, not {ctx['actual_length']}"
    return error["msg"]


def _unknown(name: str, model: type[BaseModel]) -> str:
    known = [info.alias or name for name, info in model.model_fields.items()]
    by_lower = {alias.lower(): alias for alias in known}
    close = get_close_matches(name.lower().replace("_", ""), by_lower, n=1)
    if close:
        return f"unknown field; did you mean {by_lower[close[0]]}?"
    return f"unknown field; known: {', '.join(known)}"


def _model_at(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """The model that the value at this path is read as; positions in lists need no step of their own."""
    for part in path:
        if isinstance(part, str):
            annotation = next(info.annotation for info in model.model_fields.values() if info.alias == part)
            model = next(_models_in(annotation))
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _shown_at(loc: tuple[int | str, ...], value: Any, model: type[BaseModel]) -> str:
    """A value as a message may show it: where a secret could have been put, only what kind of value it is."""
    private = model is Secret or bool({"baseURL", "proxySecretRef", "options", "template"} & set(loc))
    return _sort_of(value) if private else _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and abs(value) < 10**20:
        return repr(value)
    if isinstance(value, str) and re.fullmatch(r"[\w./-]{0,60}", value, re.ASCII):
        return repr(value)
    return _sort_of(value)


def _sort_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "this text"
    return "a list" if isinstance(value, list) else "a mapping"


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _broken_references(placed: Collection[_Placed], manifests: Manifests) -> Iterator[str]:
    known = sorted(manifests.sources)
    exits: dict[str, str] = {}
    for one in placed:
        if isinstance(one.document, CrawlBatch):
            problems = _unknown_sources(one.document.spec, known)
        elif isinstance(one.document, CrawlSource):
            problems = _bad_exits(one.document, manifests, exits)
        else:
            continue
        yield from (f"{one}: {problem}" for problem in problems)


def _unknown_sources(spec: CrawlBatchSpec, known: Sequence[str]) -> Iterator[str]:
    there = f" (there are {', '.join(known)})" if known else ""
    for index, name in enumerate(spec.sources):
        if name not in known:
            yield (
                f"spec.sources[{index}]: there is no CrawlSource {name!r} in the files{there}; add its document, even if"
                " the source is declared already: the batch takes its settings from there"
            )


def _bad_exits(source: CrawlSource, manifests: Manifests, exits: dict[str, str]) -> Iterator[str]:
    """Proxies that cannot be built, and egresses whose exit (in `exits`, with its owner) is taken: it has one cap."""
    spec = source.spec
    for index, egress in enumerate(spec.egresses):
        path = f"spec.egresses[{index}]"
        try:
            identity = exit_identity(spec.adapter, spec.base_url, proxy_url(manifests, egress))
        except BadInput as exc:
            yield f"{path}.proxySecretRef: {exc}"
            continue
        if identity in exits:
            yield f"{path}: is the same exit ({identity}) as {exits[identity]}; one exit has one cap: use another proxy"
        else:
            exits[identity] = f"egress {egress.name!r} of CrawlSource/{source.metadata.name}"


def _read(path: Path) -> list[tuple[int, Any]]:
    """The documents of a file with their numbers, empty ones left out."""
    text = _text(path)
    try:
        documents = list(enumerate(yaml.load_all(text, Loader=_Loader), start=1))
    except yaml.MarkedYAMLError as exc:
        problem = _yaml_problem(path, exc)
    except yaml.reader.ReaderError as exc:
        problem = f"{path}, line {_line_of(text, exc.position)}: a character that YAML does not allow"
    except RecursionError:
        problem = f"{path}: nested too deeply"
    else:
        contents = [(number, content) for number, content in documents if content is not None]
        if contents:
            return contents
        problem = f"{path} is empty: it holds no document"
    raise BadInput(problem)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist") from None
    except IsADirectoryError:
        raise BadInput(f"{path} is a directory; name the files in it") from None
    except OSError as exc:
        raise BadInput(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
    raise BadInput(f"{path}, line {line}: not UTF-8; save the file as UTF-8")


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _yaml_problem(path: Path, exc: yaml.MarkedYAMLError) -> str:
    """Where and what, without the piece of text at fault: an unquoted password may look like an alias or a tag."""
    problem = exc.problem or exc.context or "not YAML"
    told = re.sub(r"""(['"])(?!(?:\\?[^\\]|<[a-z ]+>)\1)(?:\\.|(?!\1).)*\1""", "...", problem)
    hint = "; does a text need quotes there?" if told != problem else ""
    mark = exc.problem_mark or exc.context_mark
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{path}{place}: {told}{hint}"


class _Loader(yaml.SafeLoader):
    """YAML as JSON can hold it: text keys, each once; no dates, no tags of other types, no infinity, no NUL."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        # Here and not in construct_mapping: that one merges `<<` into the same list of keys.
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            self._check_key(key, seen)
        return node

    def _check_key(self, key: yaml.Node, seen: dict[str, int]) -> None:
        if not key.tag.endswith((":str", ":merge")) or not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(
                None, None, "a key must be text; quote it", key.start_mark
            )
        if key.value in seen:
            twice = f"the key {key.value} stands twice, first on line {seen[key.value]}"
            raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
        seen[key.value] = key.start_mark.line + 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
            _refuse_unstorable(value)
        except (ValueError, LookupError):
            raise yaml.constructor.ConstructorError(
                None, None, "a value that cannot be read or stored", node.start_mark
            ) from None
        return value


def _refuse_unstorable(value: Any) -> None:
    """PostgreSQL's JSON has no infinity, and its text neither NUL nor half a surrogate pair."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not finite")
    if isinstance(value, str) and re.search("[\x00\ud800-\udfff]", value):
        raise ValueError("not storable text")


_CORE_TAGS = [f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")]
_Loader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _CORE_TAGS
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
