"""What a model's relations add to a pipeline's query, and whose changes it then has to watch. No connection."""

# The names in this SQL are the model's, quoted, and it goes into a file.
# ruff: noqa: S608

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import models

Model = type[models.Model]

#: Names of relations that say what a row is about, and are joined unasked. Who wrote it is not: that is somebody's name.
LABELS = tuple("category categories kind keywords label labels language section tag tags topic topics type".split())


class JoinError(Exception):
    """A relation cannot be joined."""


@dataclass(frozen=True)
class Watch:
    """A table whose changes make documents new."""

    table: str
    #: Empty: its primary key.
    keys: tuple[str, ...]
    affects: str


@dataclass(frozen=True)
class Join:
    """A relation as a column of the document."""

    #: Of the relation, and of the column.
    name: str
    #: Column of the own table that it stands for; ``None``: that has none.
    replaces: str | None
    #: SQL of its value.
    value: str
    #: SQL that the value needs behind FROM; empty: none.
    clause: str
    watches: tuple[Watch, ...]


def split_table(model: Model) -> tuple[str, str]:
    """Schema and table. Django has no schemas; ``db_table = 'a"."b'`` is how people name one."""
    schema, quote, table = model._meta.db_table.partition('"."')
    return (schema.strip('"'), table.strip('"')) if quote else ("public", model._meta.db_table.strip('"'))


def table_of(model: Model) -> str:
    """As a pipeline file and SQL name it."""
    return ".".join(map(quoted, split_table(model)))


def quoted(name: str) -> str:
    """A name behind a dot or AS: there even a word of SQL is one."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


def column_of(field: models.Field[Any, Any]) -> str:
    """Concrete fields have one; Django's types do not say so."""
    return field.column or ""


def relations(model: Model) -> dict[str, models.Field[Any, Any]]:
    """Those that can be joined, by their names: foreign keys of the own table, and many-to-many fields."""
    options = (model._meta.concrete_model or model)._meta
    keys = [field for field in options.local_concrete_fields if isinstance(field, models.ForeignKey)]
    return {field.name: field for field in (*keys, *options.local_many_to_many)}


def unasked(model: Model, titles: Sequence[str]) -> list[str]:
    """Relations whose names say that a reader wants to see them, and whose other side has a name to show."""
    found = []
    for name, field in relations(model).items():
        try:
            if name in LABELS:
                _label(field, "", titles)
                found.append(name)
        except JoinError:
            continue
    return found


def join(model: Model, wanted: str, number: int, titles: Sequence[str]) -> Join:
    """The relation that is wanted, as ``category`` or ``category.title``. ``number`` keeps its SQL apart from others'."""
    name, _, label = wanted.partition(".")
    field = relations(model).get(name)
    if field is None:
        there = ", ".join(sorted(relations(model))) or "none"
        raise JoinError(f"{model._meta.label} has no such relation; it has {there}")
    alias = f"r{number}"
    shown = f"{alias}.{quoted(_label(field, label, titles))}"
    if isinstance(field, models.ManyToManyField):
        return _of_many(model, field, alias, shown)
    if isinstance(field, models.ForeignKey):
        return _of_key(model, field, alias, shown)
    raise JoinError(f"{model._meta.label}.{name} is neither a foreign key nor many-to-many")


def key_of(model: Model) -> str:
    """The column of its primary key, which is one."""
    # Django 5.2 has keys of several columns.
    fields = getattr(model._meta, "pk_fields", None) or ([model._meta.pk] if model._meta.pk else [])
    if len(fields) != 1 or not fields[0].column:
        raise JoinError(f"{model._meta.label} has a primary key of several columns: write the query by hand")
    return column_of(fields[0])


def _label(field: models.Field[Any, Any], wanted: str, titles: Sequence[str]) -> str:
    """The column of the other side that is shown."""
    other = _other(field)
    fields = {one.name: one for one in (other._meta.concrete_model or other)._meta.local_concrete_fields if one.column}
    if wanted:
        found = fields.get(wanted) or next((one for one in fields.values() if one.column == wanted), None)
        if found is None:
            raise JoinError(f"{other._meta.label} has {', '.join(sorted(fields))}")
        return column_of(found)
    lines = {
        name: one
        for name, one in fields.items()
        if isinstance(one, (models.CharField, models.TextField)) and not isinstance(one, (models.SlugField, models.FileField))
    }
    shown = next((name for name in titles if name in lines), next(iter(lines), None))
    if shown is None:
        there = ", ".join(sorted(fields))
        raise JoinError(f"{other._meta.label} has no name to show: say which with {field.name}.FIELD; it has {there}")
    return column_of(lines[shown])


def _other(field: models.Field[Any, Any]) -> Model:
    other = field.related_model
    if not isinstance(other, type):
        raise JoinError(f"{other!r} is no model")
    return other


def _of_key(model: Model, field: models.ForeignKey[Any, Any], alias: str, shown: str) -> Join:
    table, key, other = table_of(model), quoted(key_of(model)), _other(field)
    own, target = quoted(column_of(field)), quoted(column_of(field.target_field))
    clause = f"LEFT JOIN {table_of(other)} {alias} ON {alias}.{target} = d.{own}"
    other_key = quoted(key_of(other))
    if target == other_key:
        affects = f"SELECT d.{key} FROM {table} d WHERE d.{own} = ANY($1)"
    else:
        joined = f"{table} d JOIN {table_of(other)} r ON r.{target} = d.{own}"
        affects = f"SELECT d.{key} FROM {joined} WHERE r.{other_key} = ANY($1)"
    return Join(field.name, column_of(field), shown, clause, (Watch(table_of(other), (), affects),))


def _of_many(model: Model, field: models.ManyToManyField[Any, Any], alias: str, shown: str) -> Join:
    through, other = through_of(field), _other(field)
    own, their = (_key_between(through, name) for name in (field.m2m_field_name(), field.m2m_reverse_field_name()))
    key = quoted(key_of(model))
    if quoted(column_of(own.target_field)) != key:
        raise JoinError(f"{through._meta.label} refers to another column than the primary key: write the query by hand")
    between, link = table_of(through), f"t{alias[1:]}"
    mine, theirs = quoted(column_of(own)), quoted(column_of(their))
    target, other_key = quoted(column_of(their.target_field)), quoted(key_of(other))
    value = (
        f"ARRAY(SELECT {shown} FROM {between} {link} JOIN {table_of(other)} {alias} ON {alias}.{target} = {link}.{theirs} "
        f"WHERE {link}.{mine} = d.{key} ORDER BY 1)"
    )
    if target == other_key:
        affects = f"SELECT t.{mine} FROM {between} t WHERE t.{theirs} = ANY($1)"
    else:
        affects = (
            f"SELECT t.{mine} FROM {between} t JOIN {table_of(other)} r ON r.{target} = t.{theirs} "
            f"WHERE r.{other_key} = ANY($1)"
        )
    # A link that is gone cannot be looked up: what it belonged to is one of its own columns.
    of_link = f"SELECT d.{key} FROM {table_of(model)} d WHERE d.{key} = ANY($1)"
    watches = (Watch(table_of(other), (), affects), Watch(between, (column_of(own),), of_link))
    return Join(field.name, None, value, "", watches)


def through_of(field: models.ManyToManyField[Any, Any]) -> Model:
    """The model between the two sides."""
    through: Any = field.remote_field.through
    if not isinstance(through, type):
        raise JoinError(f"{through!r} is no model")
    return through


def _key_between(through: Model, name: str) -> models.ForeignKey[Any, Any]:
    field = through._meta.get_field(name)
    if not isinstance(field, models.ForeignKey):
        raise JoinError(f"{through._meta.label}.{name} is no foreign key")
    return field


def query(model: Model, columns: Iterable[str], joins: Sequence[Join]) -> str:
    """The documents of the keys in ``$1``."""
    key, joined = key_of(model), {join.name: join for join in joins}
    values = [
        f"{joined[name].value} AS {quoted(name)}" if name in joined else f"d.{quoted(name)}"
        for name in dict.fromkeys([key, *columns])
    ]
    plain = [value for value in values if not value.startswith("ARRAY(")]
    arrays = [f"       {value}" for value in values if value.startswith("ARRAY(")]
    lines = ["SELECT " + ",\n".join([", ".join(plain), *arrays]), f"FROM {table_of(model)} d"]
    # An array is read where it stands.
    lines += [join.clause for join in joins if join.clause]
    text = "\n".join([*lines, f"WHERE d.{quoted(key)} = ANY($1)"])
    return "\n".join(f"  {line}" for line in text.splitlines())


def watches(joins: Sequence[Join]) -> list[Watch]:
    """Every table once for each of its keys: two relations may lead to one table."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for watch in (watch for join in joins for watch in join.watches):
        affects = found.setdefault((watch.table, watch.keys), [])
        if watch.affects not in affects:
            affects.append(watch.affects)
    return [Watch(table, keys, " UNION ".join(affects)) for (table, keys), affects in found.items()]
