"""Migration operations: what vecsync needs of PostgreSQL for a model. Other databases are left alone."""

from __future__ import annotations

import json
import logging
from typing import Any

from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

logger = logging.getLogger(__name__)

IDENTITIES = ("default", "full")
#: How a comment on a publication begins that an operation wrote.
MARK = "django-vecsync "


class Publish(Operation):
    """Publishes a model's table to vecsync, as ``sql/publication.sql`` and ``sql/replica_identity.sql`` do.

    ``replica_identity="full"`` writes the whole old row with each change: it saves vecsync a read where rows with large texts
    change in other columns, and costs WAL. ``grant_to`` names the role that vecsync connects as, if it is to be given the right
    to read the table. The role that migrates needs CREATE on the database and must own the table.

    Going back undoes what was done here and nothing else; a comment on the publication says what that was. The table is taken
    out of a publication that has it by name, and one that was made here goes with its last table. What may be somebody else's
    is left, with a warning in the log. vecsync then stops and says so.
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
    ) -> None:
        if replica_identity not in IDENTITIES:
            raise ValueError(f"replica_identity = {replica_identity!r}: wanted {' or '.join(IDENTITIES)}")
        for name in (publication, grant_to):
            # Django puts quotes around a name and takes it that there are none inside.
            if name is not None and (not name or '"' in name or len(name.encode()) > 63):
                raise ValueError(f"{name!r}: wanted a name of PostgreSQL, at most 63 bytes, without quotes")
        self.model_name = model_name
        self.publication = publication or f"vecsync_{model_name.lower()}"
        self.replica_identity = replica_identity
        self.grant_to = grant_to

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Models stay as they are."""

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        table = self._table(app_label, schema_editor, to_state)
        if table is None:
            return
        quote = schema_editor.quote_name
        create = f"CREATE PUBLICATION {quote(self.publication)} FOR TABLE {quote(table)} " + (
            "WITH (publish = 'insert, update, delete, truncate')"
        )
        grant = f"GRANT SELECT ON TABLE {quote(table)} TO {quote(self.grant_to)}" if self.grant_to else None
        if schema_editor.collect_sql:
            self._execute(schema_editor, create)
            if self.replica_identity != "default":
                self._identity(schema_editor, table, self.replica_identity)
            if grant:
                self._execute(schema_editor, grant)
            return
        found = self._found(schema_editor)
        ours: dict[str, Any] = {}
        if found is None:
            self._execute(schema_editor, create)
            ours["added"] = True
        elif not self._is_published(schema_editor, table):
            self._execute(schema_editor, f"ALTER PUBLICATION {quote(self.publication)} ADD TABLE {quote(table)}")
            ours["added"] = True
        identity, name = self._identity_and_name(schema_editor, table)
        if self.replica_identity == "full" and identity != "f":
            self._identity(schema_editor, table, "full")
            # What an index did is not told apart from what nothing did: that is left to who made it so.
            if identity == "d":
                ours["identity"] = True
        if grant and not self._may_read(schema_editor, table):
            self._execute(schema_editor, grant)
            ours["granted"] = self.grant_to
        # Without one of its own it must not write over what somebody else says there.
        if ours and (found is None or (found.is_ours_to_alter and (found.comment is None or found.mark is not None))):
            mark = (found.mark if found else None) or {"made": found is None, "tables": {}}
            mark["tables"][name] = {**mark["tables"].get(name, {}), **ours}
            self._remember(schema_editor, mark)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        table = self._table(app_label, schema_editor, from_state)
        if table is None:
            return
        quote = schema_editor.quote_name
        revoke = f"REVOKE SELECT ON TABLE {quote(table)} FROM {quote(self.grant_to)}" if self.grant_to else None
        remove = f"ALTER PUBLICATION {quote(self.publication)} DROP TABLE {quote(table)}"
        if schema_editor.collect_sql:
            if revoke:
                self._execute(schema_editor, revoke)
            if self.replica_identity != "default":
                self._identity(schema_editor, table, "default")
            self._execute(schema_editor, remove)
            return
        found = self._found(schema_editor)
        identity, name = self._identity_and_name(schema_editor, table)
        mark = (found.mark if found else None) or {"made": False, "tables": {}}
        ours = mark["tables"].pop(name, {})
        if revoke and self._may_read(schema_editor, table):
            if ours.get("granted") == self.grant_to:
                self._execute(schema_editor, revoke)
            else:
                logger.warning("%s: SELECT of %s is left, which may be somebody else's grant", table, self.grant_to)
        if self.replica_identity == "full" and identity == "f":
            if ours.get("identity"):
                self._identity(schema_editor, table, "default")
            else:
                logger.warning("%s: REPLICA IDENTITY FULL is left, which may be somebody else's choice", table)
        if found is None:
            return
        if not self._is_named(schema_editor, table):
            if self._is_published(schema_editor, table):
                logger.warning("publication %s is left: it has %s without naming it", self.publication, table)
        elif not found.is_ours_to_alter:
            logger.warning("publication %s is left as it is: it is somebody else's", self.publication)
        elif mark["made"] and self._parts(schema_editor) == 1:
            self._execute(schema_editor, f"DROP PUBLICATION {quote(self.publication)}")
            return
        else:
            self._execute(schema_editor, remove)
            if not mark["made"]:
                logger.warning("publication %s is left, without %s: it was not made here", self.publication, table)
        if ours and found.is_ours_to_alter:
            self._remember(schema_editor, mark if mark["made"] or mark["tables"] else None)

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
        return self.__class__.__qualname__, [], named

    def _table(self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState) -> str | None:
        model = state.apps.get_model(app_label, self.model_name)
        is_here = self.allow_migrate_model(schema_editor.connection.alias, model)
        return model._meta.db_table if is_here and schema_editor.connection.vendor == "postgresql" else None

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
            "SELECT relreplident::text, format('%%I.%%I', nspname, relname) FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = %s::regclass"
        )
        identity, name = self._rows(schema_editor, query, [schema_editor.quote_name(table)])[0]
        return str(identity), str(name)

    def _may_read(self, schema_editor: BaseDatabaseSchemaEditor, table: str) -> bool:
        # A role that is not there may not: what wants one says so.
        query = "SELECT 1 FROM pg_roles WHERE rolname = %s AND has_table_privilege(oid, %s::regclass, 'SELECT')"
        return bool(self._rows(schema_editor, query, [self.grant_to or "", schema_editor.quote_name(table)]))

    def _identity(self, schema_editor: BaseDatabaseSchemaEditor, table: str, identity: str) -> None:
        self._execute(schema_editor, f"ALTER TABLE {schema_editor.quote_name(table)} REPLICA IDENTITY {identity.upper()}")

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
