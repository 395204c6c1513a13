-- Says which table PostgreSQL publishes to vecsync. Run once by the table's owner, who needs CREATE on the database;
-- not needed where vecsync's own role owns the table, because vecsync then creates it:
--   psql -v ON_ERROR_STOP=1 -v publication=vecsync_faq -v schema=public -v table=faq_faq -f sql/publication.sql DATABASE
--
-- Leave out no operation: a publication without DELETE or TRUNCATE leaves rows in the index that the table has not.
-- From PostgreSQL 15 on, a column list or a WHERE after the table's name keeps the rest out of the stream.
CREATE PUBLICATION :"publication" FOR TABLE :"schema".:"table"
    WITH (publish = 'insert, update, delete, truncate');
