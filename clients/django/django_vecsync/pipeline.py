"""Pipeline files and models: what a file needs of a table, what a model has, and a file made from a model. No connection."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.apps import apps
from django.db import models

from . import joins as relations
from .joins import Join, JoinError, split_table
from .joins import column_of as _column

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Model = type[models.Model]

#: Names that are a title, in order.
TITLES = ("question", "title", "name", "headline", "subject")
#: Names that say whether a row is to be found.
SWITCHES = ("is_active", "is_published", "active", "published", "is_public", "enabled")
#: Names that a search may want to filter by.
FILTERS = ("category", "kind", "type", "language", "topic", "section")
#: Words of minijinja that are no columns.
WORDS = frozenset(
    "and or not in is if else elif endif for endfor set endset true false none True False None loop self defined undefined "
    "filter endfilter with endwith raw endraw string number mapping sequence sameas range dict namespace".split()
)


class PipelineError(Exception):
    """The file cannot be used."""


@dataclass(frozen=True)
class Pipeline:
    """What of a pipeline file concerns a model."""

    path: Path
    name: str
    schema: str
    table: str
    #: Where a column is named, and the column.
    columns: tuple[tuple[str, str], ...]
    #: Names of the payload that a search may filter by.
    filters: tuple[str, ...]
    payload: tuple[str, ...]
    #: A query of its own says what the columns are.
    has_query: bool


def files(path: Path) -> list[Path]:
    """The file, or those of a folder."""
    return sorted(path.glob("*.toml")) if path.is_dir() else [path]


def read(path: Path) -> Pipeline:
    """Reads a file as far as a model is concerned; `vecsync pipeline check` judges the rest."""
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{path}: is no TOML: {error}") from error
    try:
        source, document, index = content["source"], content["document"], content.get("index", {})
        schema, _, table = _text("source.table", source["table"]).rpartition(".")
        for key in ("title", "text", "when"):
            _text(f"document.{key}", document.get(key, ""))
        columns = [(f"document.{key}", name) for key in ("title", "text") for name in template_names(document.get(key, ""))]
        columns += [("document.when", name) for name in expression_names(document.get("when", ""))]
        payload = _texts("document.payload", document.get("payload", []))
        filters = _texts("index.filters", index.get("filters", []))
        columns += [("document.payload", name) for name in payload]
        return Pipeline(
            path=path,
            name=str(content.get("name", path.stem)),
            schema=schema.strip('"') or "public",
            table=table.strip('"'),
            columns=tuple(columns),
            filters=filters,
            payload=payload,
            has_query="query" in source,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{path}: is no pipeline file: {error}") from error


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{where} = {value!r}: wanted a text")
    return value


def _texts(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{where} = {value!r}: wanted an array of texts")
    return tuple(value)


def template_names(template: str) -> list[str]:
    """The columns that a template names, each once."""
    names: list[str] = []
    bound = set(re.findall(r"{%-?\s*set\s+(\w+)", template))
    for variables in re.findall(r"{%-?\s*for\s+([\w\s,]+?)\s+in\b", template):
        bound.update(re.findall(r"\w+", variables))
    for expression in re.findall(r"{{(.*?)}}|{%(.*?)%}", template, re.DOTALL):
        names += expression_names("".join(expression))
    return [name for name in dict.fromkeys(names) if name not in bound]


def expression_names(expression: str) -> list[str]:
    """The columns that an expression names: no texts, filters, tests, functions or attributes."""
    bare = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", " ", expression)
    bare = re.sub(r"\|\s*\w+|\bis\s+(?:not\s+)?\w+|\.\s*\w+|\b\w+\s*=(?!=)", " ~ ", bare)
    names = re.findall(r"\b([A-Za-z_]\w*)\b(?!\s*\()", bare)
    return [name for name in dict.fromkeys(names) if name not in WORDS]


def model_of(schema: str, table: str) -> Model | None:
    """The model of a table. Proxies share a table with another model; that one is meant."""
    for model in apps.get_models(include_auto_created=True):
        if model._meta.proxy or (not model._meta.managed and model._meta.swapped):
            continue
        if split_table(model) == (schema, table):
            return model
    return None


def _fields(model: Model) -> list[models.Field[Any, Any]]:
    """Those that are columns of its own table: what a parent with a table gives is in that one. A proxy's are its model's."""
    of_table = model._meta.concrete_model or model
    return [field for field in of_table._meta.local_concrete_fields if field.column]


def _elsewhere(model: Model) -> list[models.Field[Any, Any]]:
    """Those that are columns of a parent's table."""
    own = _fields(model)
    return [field for field in model._meta.concrete_fields if field.column and field not in own]


def columns_of(model: Model) -> list[str]:
    return [_column(field) for field in _fields(model)]


def disagreements(pipeline: Pipeline, model: Model) -> list[tuple[str, str | None]]:
    """What the file says that the model does not have, each with a hint."""
    if pipeline.has_query:
        return []
    columns = columns_of(model)
    found: list[tuple[str, str | None]] = []
    by_name = {field.name: field.column for field in _fields(model)}
    of_parents = {name: field for field in _elsewhere(model) for name in (_column(field), field.name)}
    for where in dict.fromkeys(where for where, _ in pipeline.columns):
        for name in (name for place, name in pipeline.columns if place == where and name not in columns):
            hint = None
            if name in by_name:
                hint = f"The column of {name} is {by_name[name]}."
            elif name in of_parents:
                parent = of_parents[name].model
                hint = f"It is in the table of {parent._meta.label}; a query (source.query) joins them."
            elif columns:
                hint = f"The columns are {', '.join(columns)}."
            found.append((f"{where} names {name}, and {model._meta.label} has no such column", hint))
    return found


@dataclass(frozen=True)
class Wanted:
    """What a file is to say; nothing: what the model suggests."""

    name: str | None = None
    title: str | None = None
    text: tuple[str, ...] = ()
    when: str | None = None
    filters: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    #: Relations to be joined, as ``category`` or ``category.title``, besides those that are joined unasked.
    join: tuple[str, ...] = ()
    #: Nothing is joined unasked.
    no_join: bool = False


def from_model(model: Model, wanted: Wanted) -> str:
    """A pipeline file for a model. Raises where the model does not say enough."""
    fields, elsewhere = _fields(model), _elsewhere(model)
    by_name: dict[str, models.Field[Any, Any]] = {}
    for field in fields:
        by_name.setdefault(_column(field), field)
        by_name.setdefault(field.name, field)

    of_parents = {name: field for field in elsewhere for name in (_column(field), field.name)}

    joins = _joins(model, wanted)
    joined = {join.name: join for join in joins}
    replaced = {join.replaces: join.name for join in joins if join.replaces}
    for name in joined:
        if name in by_name and name in {_column(field) for field in fields} and replaced.get(name) != name:
            raise PipelineError(
                f"--join {name}: {model._meta.label} has a column of this name; --no-join leaves the relation out"
            )

    def column(flag: str, name: str) -> str:
        if name in joined:
            return name
        if name in of_parents and name not in by_name:
            parent = of_parents[name].model
            raise PipelineError(f"{flag} {name}: is in the table of {parent._meta.label}; a query (source.query) joins them")
        if name not in by_name:
            raise PipelineError(f"{flag} {name}: {model._meta.label} has {', '.join(sorted(by_name))}")
        return _column(by_name[name])

    if not all(field.column for field in _key(model)):
        raise PipelineError(f"{model._meta.label} has no primary key that a row could be found by")
    texts = [field for field in fields if isinstance(field, models.TextField)]
    lines = [field for field in fields if isinstance(field, models.CharField) and not field.choices]
    title = column("--title", wanted.title) if wanted.title else _named(lines, TITLES) or _first(lines)
    text = [column("--text", name) for name in wanted.text] or [_column(field) for field in texts]
    if not text and title:
        text, title = [title], None
    if not text:
        left_out = f" ({_left_out(elsewhere)})" if elsewhere else ""
        raise PipelineError(f"{model._meta.label} has no text to search: name its columns with --text{left_out}")
    title = None if title in text else title
    switches = [field for field in fields if isinstance(field, models.BooleanField)]
    when = column("--when", wanted.when) if wanted.when else _named(switches, SWITCHES)
    for name in (*([title] if title else []), *text, *([when] if when else [])):
        if name in WORDS or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise PipelineError(
                f"{model._meta.label}: no template can name the column {name!r}; choose others with --title, --text and "
                "--when, or write a query (source.query) that gives it a name of letters, digits and underscores"
            )
    # A relation without a column of its own is left out by not being joined.
    columnless = relations.relations(model).keys() - by_name.keys()
    excluded = {column("--exclude", name) for name in wanted.exclude if name not in columnless}
    payload = [_column(field) for field in fields if _column(field) not in excluded and not _is_bulk(field)]
    payload = [replaced.get(name, name) for name in payload] + [name for name in joined if joined[name].replaces is None]
    if wanted.filters is None:
        filters = [_column(field) for field in fields if _is_filter(field)]
        filters = [replaced.get(name, name) for name in filters] + [name for name in joined if joined[name].replaces is None]
        filters = [name for name in dict.fromkeys(filters) if name in payload]
    else:
        filters = [column("--filter", chosen) for chosen in wanted.filters]
        for chosen in filters:
            if chosen not in payload:
                raise PipelineError(f"--filter {chosen}: it is not in the payload")
    name = wanted.name or re.sub(r"\W", "_", model._meta.model_name or "documents").lower()
    if not re.fullmatch(r"[a-z0-9_]{1,40}", name):
        raise PipelineError(f"--name {name}: wanted at most 40 lower-case letters, digits and underscores")
    schema, table = split_table(model)
    of_document = [*([title] if title else []), *text, *([when] if when else []), *payload]
    parts = [
        f"# Documents of {model._meta.label}. `vecsync pipeline check FILE` says what is wrong with it.",
        *([f"# {_left_out(elsewhere)}."] if elsewhere else []),
        *_said_of_joins(model, name, joins),
        f"name = {_toml(name)}",
        "",
        "[source]",
        f"table = {_toml(relations.table_of(model) if joins else f'{schema}.{table}')}",
        f"publication = {_toml(f'vecsync_{name}')}",
        f"slot = {_toml(f'vecsync_{name}')}",
        *(_query_of(model, of_document, joins) if joins else []),
        "",
        "[document]",
        *([f"title = {_toml('{{ ' + title + ' }}')}"] if title else []),
        f"text = {_toml(_template(text))}",
        f"payload = [{', '.join(map(_toml, payload))}]",
        *([f"when = {_toml(when)}"] if when else []),
        "",
        "[index]",
        f"filters = [{', '.join(map(_toml, filters))}]",
    ]
    return "\n".join(parts) + "\n"


def _joins(model: Model, wanted: Wanted) -> list[Join]:
    """What is joined: what is asked for, and what is joined unasked and not excluded."""
    asked = {one.partition(".")[0]: one for one in wanted.join}
    for name in wanted.exclude:
        if name in asked:
            raise PipelineError(f"--exclude {name}: --join asks for it")
    unasked = [] if wanted.no_join else relations.unasked(model, TITLES)
    chosen = list(asked.values()) + [name for name in unasked if name not in asked and name not in wanted.exclude]
    # In the model's own order, whichever way they came to be chosen.
    order = list(relations.relations(model))
    found = []
    for one in chosen:
        try:
            place = order.index(one.partition(".")[0]) + 1 if one.partition(".")[0] in order else 0
            found.append((place, relations.join(model, one, place, TITLES)))
        except JoinError as error:
            flag = f"--join {one}" if one in wanted.join else f"{one} (--no-join leaves it out)"
            raise PipelineError(f"{flag}: {error}") from error
    return [join for _, join in sorted(found, key=lambda one: one[0])]


def _said_of_joins(model: Model, name: str, joins: Sequence[Join]) -> list[str]:
    if not joins:
        return []
    related = ", ".join(f'"{join.name}"' for join in joins)
    return [
        "# They are made of several tables. All of them are to be published, and links have to say what they linked: a",
        "# migration does both; where it was not run, `vecsync pipeline check FILE` and `vecsync check` name what is missing.",
        f'#   Publish("{model._meta.object_name}", publication="vecsync_{name}", related=[{related}])',
    ]


def _query_of(model: Model, columns: Sequence[str], joins: Sequence[Join]) -> list[str]:
    lines = [f'query = """\n{_toml_lines(relations.query(model, columns, joins))}"""']
    for watch in relations.watches(joins):
        lines += ["", "[[source.watch]]", f"table = {_toml(watch.table)}"]
        if watch.keys:
            lines.append(f"keys = [{', '.join(map(_toml, watch.keys))}]")
        lines.append(f"affects = {_toml(watch.affects)}")
    return lines


def _toml_lines(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"""', '""\\"')


def _left_out(fields: Sequence[models.Field[Any, Any]]) -> str:
    names = ", ".join(f"{_column(field)} of {field.model._meta.label}" for field in fields)
    return f"Left out, being in another table: {names}; a query (source.query) joins them"


def _key(model: Model) -> Iterable[models.Field[Any, Any]]:
    # Django 5.2 has keys of several columns.
    return getattr(model._meta, "pk_fields", None) or ([model._meta.pk] if model._meta.pk else [])


def _named(fields: Sequence[models.Field[Any, Any]], names: tuple[str, ...]) -> str | None:
    columns = {field.name: _column(field) for field in fields}
    return next((columns[name] for name in names if name in columns), None)


def _first(fields: Sequence[models.Field[Any, Any]]) -> str | None:
    return next((_column(field) for field in fields if not isinstance(field, (models.SlugField, models.FileField))), None)


def _is_filter(field: models.Field[Any, Any]) -> bool:
    if field.primary_key or isinstance(field, (models.TextField, models.BooleanField)):
        return False
    return bool(field.is_relation or field.choices or field.name in FILTERS)


def _is_bulk(field: models.Field[Any, Any]) -> bool:
    return isinstance(field, models.BinaryField)


def _template(columns: list[str]) -> str:
    return "\n\n".join("{{ " + column + " }}" for column in columns)


def _toml(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
