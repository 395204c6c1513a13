-- The role that vecsync connects as, with the least it needs. Run once by a superuser, in the database of the table:
--   psql -v ON_ERROR_STOP=1 -v role=vecsync -v schema=public -v table=faq_faq -f sql/role.sql DATABASE
--   psql -c '\password vecsync' DATABASE        (sends the password encrypted, so that no log can hold it)
--
-- The role can read this table and stream changes of this database. It cannot write, own anything, read other tables
-- with SQL, or create the publication: publication.sql does that. REPLICATION is a strong right all the same, since a
-- slot decodes the changes of every table in the database. sql/pg_hba.conf has the lines that let the role into this
-- database and nothing else.
SELECT format('CREATE ROLE %I', :'role')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec

ALTER ROLE :"role" LOGIN REPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'role') \gexec
GRANT USAGE ON SCHEMA :"schema" TO :"role";
GRANT SELECT ON TABLE :"schema".:"table" TO :"role";
