-- The records as they are now.
CREATE TABLE records (
    key     TEXT    NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,           -- the revision that wrote the value
    value   TEXT    NOT NULL,           -- JSON
    sum     INTEGER                     -- CRC-32 of key, version and value; NULL: not checked (after a repair by hand)
) STRICT;
CREATE INDEX records_by_version ON records (version);

-- What commits after the compaction floor replaced or deleted. A value was there from `version` until before the
-- revision in the upper bits of `id`; a row without a value tells watchers of a delete at `version`.
-- id = revision << 8 | place, so that compaction cuts a range off the front.
CREATE TABLE history (
    id      INTEGER NOT NULL PRIMARY KEY,
    key     TEXT    NOT NULL,
    version INTEGER NOT NULL,
    value   TEXT,
    sum     INTEGER
) STRICT;
CREATE INDEX history_by_version ON history (version);

-- What became of each transaction: the revision it committed at, or NULL: never to be committed.
CREATE TABLE txns (
    txn      BLOB    NOT NULL PRIMARY KEY,
    revision INTEGER,
    decided  INTEGER NOT NULL,          -- the store's revision then
    at       INTEGER NOT NULL           -- milliseconds since 1970
) STRICT, WITHOUT ROWID;
CREATE INDEX txns_by_time ON txns (at);

-- Rows stay after a release: tokens never fall.
CREATE TABLE leases (
    name    TEXT    NOT NULL PRIMARY KEY,
    holder  TEXT,
    token   INTEGER NOT NULL,
    expires INTEGER NOT NULL            -- milliseconds since 1970
) STRICT, WITHOUT ROWID;

-- The latest heartbeats, written along with commits: they may be some seconds old.
CREATE TABLE beats (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE meta (
    one       INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    revision  INTEGER NOT NULL,         -- of the latest commit
    compacted INTEGER NOT NULL          -- lists and watches from before this one are refused
) STRICT;
INSERT INTO meta VALUES (1, 0, 0);
