"""Migration operations: what vecsync needs of PostgreSQL for a model. Other databases are left alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from . import joins

logger = logging.getLogger(__name__)

IDENTITIES = ("default", "full")
#: How a comment on a publication begins that an operation wrote.
MARK = "django-vecsync "


@dataclass(frozen=True)
class _Table:
    """A table to be published."""

    name: str
    #: ``default``, ``full``, or ``links``: what a row that is deleted leaves has to have the column.
    identity: str
    column: str = ""
    #: Not the documents' own.
    is_related: bool = False


class Publish(Operation):
    """Publishes a model's table to vecsync, as ``sql/publication.sql`` and ``sql/replica_identity.sql`` do.

    ``replica_identity="full"`` writes the whole old row with each change: it saves vecsync a read where rows with large texts
    change in other columns, and costs WAL. ``grant_to`` names the role that vecsync connects as, if it is to be given the right
    to read the table. The role that migrates needs CREATE on the database and must own the table.

    ``related`` names foreign keys and many-to-many fields of the model that the documents are joined with
    (``vecsync_pipeline`` says which): their tables are published as well. Of a table between two others each change has to say
    what was linked: it gets its unique index as replica identity, or all columns where there is none.

    Going back undoes what was done here and nothing else; a comment on the publication says what that was. The table is taken
    out of a publication that has it by name, and one that was made here goes with its last table. A replica identity becomes
    what it was: none, the key, an index, all columns. What may be somebody else's is left, with a warning in the log. vecsync
    then stops and says so.
    """

    reduces_to_sql = True
    reversible = True
    atomic = True

    def __init__(
        self,
        model_name: str,
        publication: str | None = None,
        replica_identity: str = "default",
        grant_to: str | None = None,
        related: Sequence[str] = (),
    ) -> None:
        if replica_identity not in IDENTITIES:
            raise ValueError(f"replica_identity = {replica_identity!r}: wanted {' or '.join(IDENTITIES)}")
        for name in (publication, grant_to):
            # Django puts quotes around a name and takes it that there are none inside.
            if name is not None and (not name or '"' in name or len(name.encode()) > 63):
                raise ValueError(f"{name!r}: wanted a name of PostgreSQL, at most 63 bytes, without quotes")
        if isinstance(related, str) or not all(isinstance(name, str) for name in related):
            raise ValueError(f"related = {related!r}: wanted names of fields")
        self.model_name = model_name
        self.publication = publication or f"vecsync_{model_name.lower()}"
        self.replica_identity = replica_identity
        self.grant_to = grant_to
        self.related = list(related)

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Models stay as they are."""

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        tables = self._tables(app_label, schema_editor, to_state)
        if schema_editor.collect_sql:
            self._write_forwards(schema_editor, tables)
            return
        for table in tables:
            self._publish(schema_editor, table)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        tables = self._tables(app_label, schema_editor, from_state)
        if schema_editor.collect_sql:
            self._write_backwards(schema_editor, tables)
            return
        # The documents' own comes last: with it goes the publication.
        for table in reversed(tables):
            self._withdraw(schema_editor, table)

    def _write_forwards(self, schema_editor: BaseDatabaseSchemaEditor, tables: Sequence[_Table]) -> None:
        quote = schema_editor.quote_name
        if tables:
            self._execute(schema_editor, self._create(schema_editor, [table.name for table in tables]))
        for table in tables:
            if table.identity == "full":
                self._identity(schema_editor, table.name, "full")
            if table.identity == "links":
                # Its name is the database's, and it may not be there yet.
                self._execute(
                    schema_editor,
                    f"-- ALTER TABLE {quote(table.name)} REPLICA IDENTITY USING INDEX (its unique index with {table.column})",
                )
            if self.grant_to:
                self._execute(schema_editor, self._grant(schema_editor, table))

    def _write_backwards(self, schema_editor: BaseDatabaseSchemaEditor, tables: Sequence[_Table]) -> None:
        for table in reversed(tables):
            if self.grant_to:
                self._execute(schema_editor, self._revoke(schema_editor, table))
            if table.identity != "default":
                self._identity(schema_editor, table.name, "default")
            self._execute(schema_editor, self._remove(schema_editor, table))

    def _create(self, schema_editor: BaseDatabaseSchemaEditor, tables: Sequence[str]) -> str:
        quote = schema_editor.quote_name
        return (
            f"CREATE PUBLICATION {quote(self.publication)} FOR TABLE {', '.join(map(quote, tables))} "
            "WITH (publish = 'insert, update, delete, truncate')"
        )

    def _grant(self, schema_editor: BaseDatabaseSchemaEditor, table: _Table) -> str:
        quote = schema_editor.quote_name
        return f"GRANT SELECT ON TABLE {quote(table.name)} TO {quote(self.grant_to or '')}"

    def _revoke(self, schema_editor: BaseDatabaseSchemaEditor, table: _Table) -> str:
        quote = schema_editor.quote_name
        return f"REVOKE SELECT ON TABLE {quote(table.name)} FROM {quote(self.grant_to or '')}"

    def _remove(self, schema_editor: BaseDatabaseSchemaEditor, table: _Table) -> str:
        quote = schema_editor.quote_name
        return f"ALTER PUBLICATION {quote(self.publication)} DROP TABLE {quote(table.name)}"

    def _publish(self, schema_editor: BaseDatabaseSchemaEditor, table: _Table) -> None:
        quote = schema_editor.quote_name
        found = self._found(schema_editor)
        ours: dict[str, Any] = {}
        if found is None:
            self._execute(schema_editor, self._create(schema_editor, [table.name]))
            ours["added"] = True
        elif not self._is_published(schema_editor, table.name):
            self._execute(schema_editor, f"ALTER PUBLICATION {quote(self.publication)} ADD TABLE {quote(table.name)}")
            ours["added"] = True
        identity, name = self._identity_and_name(schema_editor, table.name)
        wanted = self._wanted_identity(schema_editor, table, identity)
        if wanted != identity:
            self._identity(schema_editor, table.name, wanted)
            ours["identity"] = {"was": identity, "is": wanted}
        if self.grant_to and not self._may_read(schema_editor, table.name):
            self._execute(schema_editor, self._grant(schema_editor, table))
            ours["granted"] = self.grant_to
        # Without one of its own it must not write over what somebody else says there.
        if ours and (found is None or (found.is_ours_to_alter and (found.comment is None or found.mark is not None))):
            mark = (found.mark if found else None) or {"made": found is None, "tables": {}}
            mark["tables"][name] = {**mark["tables"].get(name, {}), **ours}
            self._remember(schema_editor, mark)

    def _withdraw(self, schema_editor: BaseDatabaseSchemaEditor, table: _Table) -> None:
        found = self._found(schema_editor)
        identity, name = self._identity_and_name(schema_editor, table.name)
        mark = (found.mark if found else None) or {"made": False, "tables": {}}
        ours = mark["tables"].pop(name, {})
        if self.grant_to and self._may_read(schema_editor, table.name):
            if ours.get("granted") == self.grant_to:
                self._execute(schema_editor, self._revoke(schema_editor, table))
            else:
                logger.warning("%s: SELECT of %s is left, which may be somebody else's grant", table.name, self.grant_to)
        if table.identity != "default" and (left := self._give_back(schema_editor, table, identity, ours.get("identity"))):
            logger.warning("%s: %s is left, %s", table.name, _identity_sql(identity), left)
        if found is None:
            return
        if not self._is_named(schema_editor, table.name):
            if self._is_published(schema_editor, table.name):
                logger.warning("publication %s is left: it has %s without naming it", self.publication, table.name)
        elif not found.is_ours_to_alter:
            logger.warning("publication %s is left as it is: it is somebody else's", self.publication)
        elif table.is_related and not ours.get("added"):
            logger.warning("publication %s is left with %s, which somebody else added", self.publication, table.name)
        elif mark["made"] and self._parts(schema_editor) == 1:
            self._execute(schema_editor, f"DROP PUBLICATION {schema_editor.quote_name(self.publication)}")
            return
        else:
            self._execute(schema_editor, self._remove(schema_editor, table))
            if not mark["made"]:
                logger.warning("publication %s is left, without %s: it was not made here", self.publication, table.name)
        if ours and found.is_ours_to_alter:
            self._remember(schema_editor, mark if mark["made"] or mark["tables"] else None)

    def _wanted_identity(self, schema_editor: BaseDatabaseSchemaEditor, table: _Table, identity: str) -> str:
        """The replica identity that the table is to have, where it has this one."""
        if table.identity == "full":
            return "full"
        if table.identity == "default" or identity == "full":
            return identity
        if identity != "nothing" and table.column in self._columns(schema_editor, table.name, identity):
            return identity
        found = [name for name in self._unique(schema_editor, table.name) if table.column in name[1]]
        return f"index {found[0][0]}" if found else "full"

    def _give_back(self, schema_editor: BaseDatabaseSchemaEditor, table: _Table, identity: str, ours: Any) -> str | None:
        """Makes the replica identity what it was. Why it is left, where it is."""
        somebody_else = "which may be somebody else's choice"
        # What an earlier version noted: FULL, and before it the key.
        was, given = ("default", "full") if ours is True else _was_and_is(ours)
        if given is None or identity != given:
            # Never touched, or chosen anew since: nothing to say where it is as everybody has it.
            return somebody_else if identity == "full" or (given and identity != was) else None
        if was.startswith("index ") and was[6:] not in [name for name, _ in self._unique(schema_editor, table.name)]:
            return f"since {was} is there no more"
        self._identity(schema_editor, table.name, was)
        return None

    def describe(self) -> str:
        return f"Publish {self.model_name} to vecsync as {self.publication}"

    @property
    def migration_name_fragment(self) -> str:
        return f"publish_{self.model_name.lower()}"

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        named: dict[str, Any] = {"model_name": self.model_name, "publication": self.publication}
        if self.replica_identity != "default":
            named["replica_identity"] = self.replica_identity
        if self.grant_to:
            named["grant_to"] = self.grant_to
        if self.related:
            named["related"] = self.related
        return self.__class__.__qualname__, [], named

    def _tables(self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState) -> list[_Table]:
        """The documents' own first, each once; none where this database is not theirs."""
        model: Any = state.apps.get_model(app_label, self.model_name)
        is_here = self.allow_migrate_model(schema_editor.connection.alias, model)
        if not is_here or schema_editor.connection.vendor != "postgresql":
            return []
        tables = [_Table(model._meta.db_table, self.replica_identity)]
        fields = joins.relations(model)
        for name in self.related:
            field: Any = fields.get(name)
            if field is None:
                raise ValueError(f"related = {name!r}: {model._meta.label} has {', '.join(sorted(fields)) or 'no relations'}")
            if field.many_to_many:
                through = joins.through_of(field)
                column = joins.column_of(through._meta.get_field(field.m2m_field_name()))  # type: ignore[arg-type]
                tables.append(_Table(through._meta.db_table, "links", column, is_related=True))
            tables.append(_Table(field.related_model._meta.db_table, "default", is_related=True))
        found: dict[str, _Table] = {}
        for table in tables:
            # What has to tell its links has to, whatever else leads to it.
            if table.name not in found or (table.identity == "links" and found[table.name].identity == "default"):
                found[table.name] = replace(table, is_related=table.name != tables[0].name)
        return list(found.values())

    def _found(self, schema_editor: BaseDatabaseSchemaEditor) -> _Publication | None:
        rows = self._rows(
            schema_editor,
            "SELECT obj_description(oid, 'pg_publication'), pg_has_role(current_user, pubowner, 'USAGE') "
            "FROM pg_publication WHERE pubname = %s",
            [self.publication],
        )
        return _Publication(*rows[0]) if rows else None

    def _is_named(self, schema_editor: BaseDatabaseSchemaEditor, table: str) -> bool:
        """Whether the publication has the table by its name."""
        query = (
            "SELECT 1 FROM pg_publication_rel JOIN pg_publication p ON p.oid = prpubid "
            "WHERE pubname = %s AND prrelid = %s::regclass"
        )
        return bool(self._rows(schema_editor, query, [self.publication, schema_editor.quote_name(table)]))

    def _is_published(self, schema_editor: BaseDatabaseSchemaEditor, table: str) -> bool:
        """Whether it has it at all: by its name, its schema, or as all tables."""
        query = (
            "SELECT 1 FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname "
            "JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename "
            "WHERE t.pubname = %s AND c.oid = %s::regclass"
        )
        parameters = [self.publication, schema_editor.quote_name(table)]
        return self._is_named(schema_editor, table) or bool(self._rows(schema_editor, query, parameters))

    def _parts(self, schema_editor: BaseDatabaseSchemaEditor) -> int:
        """Tables and schemas that it names."""
        # Before PostgreSQL 15 there are no schemas.
        has_schemas = self._rows(schema_editor, "SELECT to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL", [])[0][
            0
        ]
        count = "SELECT (SELECT count(*) FROM pg_publication_rel WHERE prpubid = p.oid)"
        if has_schemas:
            count += " + (SELECT count(*) FROM pg_publication_namespace WHERE pnpubid = p.oid)"
        return int(self._rows(schema_editor, f"{count} FROM pg_publication p WHERE pubname = %s", [self.publication])[0][0])

    def _identity_and_name(self, schema_editor: BaseDatabaseSchemaEditor, table: str) -> tuple[str, str]:
        query = (
            "SELECT relreplident::text, format('%%I.%%I', nspname, relname), (SELECT i.relname FROM pg_index JOIN pg_class i "
            "ON i.oid = indexrelid WHERE indrelid = c.oid AND indisreplident) FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = %s::regclass"
        )
        identity, name, index = self._rows(schema_editor, query, [schema_editor.quote_name(table)])[0]
        # Where the index was dropped, nothing tells old rows apart.
        of_index = f"index {index}" if index else "nothing"
        return {"d": "default", "f": "full", "i": of_index}.get(str(identity), "nothing"), str(name)

    def _unique(self, schema_editor: BaseDatabaseSchemaEditor, table: str) -> list[tuple[str, list[str]]]:
        """Indexes that can be a replica identity, with their columns; the smallest first."""
        query = (
            "SELECT i.relname, array_agg(a.attname::text ORDER BY a.attnum) "
            "FROM pg_index x JOIN pg_class i ON i.oid = indexrelid "
            "JOIN pg_attribute a ON a.attrelid = indrelid AND a.attnum = ANY(indkey) "
            "WHERE indrelid = %s::regclass AND indisunique AND indimmediate AND indisvalid "
            "AND indpred IS NULL AND indexprs IS NULL AND indnkeyatts = indnatts "
            "GROUP BY i.relname, indexrelid HAVING bool_and(a.attnotnull) ORDER BY count(*), indexrelid"
        )
        return [
            (str(name), list(columns)) for name, columns in self._rows(schema_editor, query, [schema_editor.quote_name(table)])
        ]

    def _columns(self, schema_editor: BaseDatabaseSchemaEditor, table: str, identity: str) -> list[str]:
        """What an old row tells."""
        if identity.startswith("index "):
            return dict(self._unique(schema_editor, table)).get(identity[6:], [])
        query = (
            "SELECT attname::text FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey) "
            "WHERE indrelid = %s::regclass AND indisprimary"
        )
        return [str(row[0]) for row in self._rows(schema_editor, query, [schema_editor.quote_name(table)])]

    def _may_read(self, schema_editor: BaseDatabaseSchemaEditor, table: str) -> bool:
        # A role that is not there may not: what wants one says so.
        query = "SELECT 1 FROM pg_roles WHERE rolname = %s AND has_table_privilege(oid, %s::regclass, 'SELECT')"
        return bool(self._rows(schema_editor, query, [self.grant_to or "", schema_editor.quote_name(table)]))

    def _identity(self, schema_editor: BaseDatabaseSchemaEditor, table: str, identity: str) -> None:
        self._execute(schema_editor, f"ALTER TABLE {schema_editor.quote_name(table)} {_identity_sql(identity)}")

    def _remember(self, schema_editor: BaseDatabaseSchemaEditor, mark: dict[str, Any] | None) -> None:
        """What was done here, where going back finds it: in the publication's comment."""
        text = "NULL"
        if mark is not None:
            text = MARK + json.dumps(mark, sort_keys=True)
            text = "'" + text.replace("'", "''") + "'"
        self._execute(schema_editor, f"COMMENT ON PUBLICATION {schema_editor.quote_name(self.publication)} IS {text}")

    @staticmethod
    def _execute(schema_editor: BaseDatabaseSchemaEditor, statement: str) -> None:
        # Without parameters a per cent sign in a name is one.
        schema_editor.execute(statement, params=None)

    @staticmethod
    def _rows(schema_editor: BaseDatabaseSchemaEditor, query: str, parameters: list[str]) -> list[Any]:
        with schema_editor.connection.cursor() as cursor:
            cursor.execute(query, parameters)
            return list(cursor.fetchall())


def _identity_sql(identity: str) -> str:
    if identity.startswith("index "):
        return 'REPLICA IDENTITY USING INDEX "' + identity[6:].replace('"', '""') + '"'
    return f"REPLICA IDENTITY {identity.upper()}"


def _was_and_is(noted: Any) -> tuple[str, str | None]:
    """The replica identity before and after, where a note says so."""
    both = [noted.get(name) for name in ("was", "is")] if isinstance(noted, dict) else []
    known = [one for one in both if one in ("default", "full", "nothing") or str(one).startswith("index ")]
    return (str(known[0]), str(known[1])) if len(known) == 2 else ("default", None)


class _Publication:
    """One that is there."""

    def __init__(self, comment: str | None, is_ours_to_alter: bool) -> None:
        self.comment = comment
        #: Its owner may: who may not cannot have added a table to it either.
        self.is_ours_to_alter = is_ours_to_alter

    @property
    def mark(self) -> dict[str, Any] | None:
        """What operations have done to it, by their own word."""
        if not (self.comment or "").startswith(MARK):
            return None
        try:
            mark = json.loads((self.comment or "").removeprefix(MARK))
            of_tables = all(isinstance(done, dict) for done in mark["tables"].values())
            return mark if of_tables and isinstance(mark["made"], bool) else None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
