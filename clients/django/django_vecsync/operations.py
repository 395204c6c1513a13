"""Migration operations: what vecsync needs of PostgreSQL for a model. Other databases are left alone."""

from __future__ import annotations

from typing import Any

from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

IDENTITIES = ("default", "full")


class Publish(Operation):
    """Publishes a model's table to vecsync, as ``sql/publication.sql`` and ``sql/replica_identity.sql`` do.

    ``replica_identity="full"`` writes the whole old row with each change: it saves vecsync a read where rows with large texts
    change in other columns, and costs WAL. ``grant_to`` names the role that vecsync connects as, if it is to be given the right
    to read the table. The role that migrates needs CREATE on the database and must own the table.

    Going back removes the table from the publication, and the publication with its last table. vecsync then stops and says so.
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
        if schema_editor.collect_sql or not self._rows(
            schema_editor, "SELECT 1 FROM pg_publication WHERE pubname = %s", [self.publication]
        ):
            schema_editor.execute(
                f"CREATE PUBLICATION {quote(self.publication)} FOR TABLE {quote(table)} "
                "WITH (publish = 'insert, update, delete, truncate')"
            )
        elif not self._is_published(schema_editor, table):
            schema_editor.execute(f"ALTER PUBLICATION {quote(self.publication)} ADD TABLE {quote(table)}")
        if self.replica_identity != "default":
            schema_editor.execute(f"ALTER TABLE {quote(table)} REPLICA IDENTITY {self.replica_identity.upper()}")
        if self.grant_to:
            schema_editor.execute(f"GRANT SELECT ON TABLE {quote(table)} TO {quote(self.grant_to)}")

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        table = self._table(app_label, schema_editor, from_state)
        if table is None:
            return
        quote = schema_editor.quote_name
        if self.grant_to:
            schema_editor.execute(f"REVOKE SELECT ON TABLE {quote(table)} FROM {quote(self.grant_to)}")
        if self.replica_identity != "default":
            schema_editor.execute(f"ALTER TABLE {quote(table)} REPLICA IDENTITY DEFAULT")
        count = "SELECT count(*) FROM pg_publication_tables WHERE pubname = %s"
        if schema_editor.collect_sql:
            schema_editor.execute(f"DROP PUBLICATION IF EXISTS {quote(self.publication)}")
        elif self._is_published(schema_editor, table):
            if self._rows(schema_editor, count, [self.publication])[0][0] > 1:
                schema_editor.execute(f"ALTER PUBLICATION {quote(self.publication)} DROP TABLE {quote(table)}")
            else:
                schema_editor.execute(f"DROP PUBLICATION {quote(self.publication)}")

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

    def _is_published(self, schema_editor: BaseDatabaseSchemaEditor, table: str) -> bool:
        schema, quoted, name = table.partition('"."')
        query = "SELECT 1 FROM pg_publication_tables WHERE pubname = %s AND tablename = %s"
        parameters = [self.publication, name.strip('"') if quoted else table.strip('"')]
        if quoted:
            query, parameters = f"{query} AND schemaname = %s", [*parameters, schema.strip('"')]
        return bool(self._rows(schema_editor, query, parameters))

    @staticmethod
    def _rows(schema_editor: BaseDatabaseSchemaEditor, query: str, parameters: list[str]) -> list[Any]:
        with schema_editor.connection.cursor() as cursor:
            cursor.execute(query, parameters)
            return list(cursor.fetchall())
