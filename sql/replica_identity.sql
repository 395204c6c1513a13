-- Makes PostgreSQL write the whole old row with each update and delete. Optional; run by the table's owner, at any time:
--   psql -v ON_ERROR_STOP=1 -v schema=public -v table=faq_faq -f sql/replica_identity.sql DATABASE
--
-- With the default (the primary key) an update that leaves a large text untouched does not carry it, and vecsync reads
-- the row once more by its key. FULL saves that read and costs WAL: worth it where rows with large texts change often in
-- their other columns. A table without a primary key has no key to index rows by, and FULL does not change that.
-- Back to the default: ALTER TABLE … REPLICA IDENTITY DEFAULT.
ALTER TABLE :"schema".:"table" REPLICA IDENTITY FULL;
