//! Tables of the catalog, and how older ones become them.

/// Version of the schema; SQLite's `user_version`.
pub(super) const VERSION: u32 = 6;

/// The tables and indexes, as a list in SQL.
pub(super) const NAMES: &str = "'sources', 'epochs', 'shards', 'shards_of_source', 'documents', 'documents_by_uri', 'documents_of_shard_by_uri',
    'documents_by_hash', 'other_uris', 'other_uris_by_uri', 'removals', 'removal_parts', 'backups', 'duplicates', 'quarantined', 'store',
    'changes', 'changes_by_epoch', 'moments', 'kept_parts', 'log', 'holds', 'ended_holds', 'optouts', 'optout_events', 'suppressions',
    'suppressions_of_optout', 'suppression_key', 'policies',
    'ledger'";

/// Sources as they were declared.
macro_rules! sources {
    () => {
        "
CREATE TABLE sources (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused
    name TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    licence TEXT NOT NULL,
    licence_stated_at TEXT NOT NULL,
    tier TEXT NOT NULL,
    permissions TEXT NOT NULL,              -- JSON object, one boolean per purpose
    notice TEXT NOT NULL                    -- what its licence asks to be given with what is made from it
) STRICT;
"
    };
}

/// What sources gave to answers.
macro_rules! ledger {
    () => {
        "
CREATE TABLE ledger (                       -- what sources gave to answers
    hour INTEGER NOT NULL,                  -- since 1970
    source_id INTEGER NOT NULL REFERENCES sources (id),
    n_responses INTEGER NOT NULL,           -- that it had a part in
    n_tokens INTEGER NOT NULL,              -- in which it had a share
    share REAL NOT NULL,                    -- summed, in tokens
    n_passage_responses INTEGER NOT NULL,   -- before which passages of it stood
    n_verbatim_tokens INTEGER NOT NULL,     -- that stand in runs of words of it
    PRIMARY KEY (hour, source_id)
) STRICT, WITHOUT ROWID;
"
    };
}

/// What the log of changes is kept in.
macro_rules! changes {
    () => {
        "
CREATE TABLE changes (                      -- what the Merkle log is made of; never changed
    position INTEGER PRIMARY KEY,           -- from 0, without gaps
    at_unix_ms INTEGER NOT NULL,
    epoch INTEGER,                          -- that it made, if it changed what may be retrieved
    entry TEXT NOT NULL                     -- JSON, the leaf to the byte
) STRICT;
CREATE INDEX changes_by_epoch ON changes (epoch);
CREATE TABLE moments (                      -- where the log speaks of a withdrawal
    removal_id INTEGER NOT NULL REFERENCES removals (id),
    moment TEXT NOT NULL CHECK (moment IN ('logged', 'in-force', 'purged')),
    position INTEGER NOT NULL REFERENCES changes (position),
    PRIMARY KEY (removal_id, moment)
) STRICT, WITHOUT ROWID;
CREATE TABLE kept_parts (                   -- documents of a withdrawal that other shards of their source held, so that they did not leave it
    removal_id INTEGER NOT NULL REFERENCES removals (id),
    shard_id INTEGER NOT NULL,
    numbers BLOB NOT NULL,                  -- roaring bitmap
    PRIMARY KEY (removal_id, shard_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE log (
    id TEXT NOT NULL                        -- drawn when the store was made, and again by each restore
) STRICT;
"
    };
}

/// The log of withdrawals.
macro_rules! removals {
    () => {
        "
CREATE TABLE removals (                     -- the log: what was withdrawn, withheld, suspended and put back, in order
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    epoch INTEGER NOT NULL UNIQUE REFERENCES epochs (epoch),
    at_unix_ms INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('remove', 'suspend', 'resume', 'hold', 'release')),
    selector TEXT NOT NULL,                 -- how it was asked for: 'shard', 'source', 'documents', 'uri-prefix', 'opt-out'
    chain TEXT NOT NULL,                    -- SHA-256 of the entry and of the chain before it
    purged_at_unix_ms INTEGER,              -- when its bytes were gone from all files
    ends INTEGER REFERENCES removals (id)   -- the hold that it ends
) STRICT;
CREATE INDEX holds ON removals (id) WHERE kind = 'hold';
CREATE INDEX ended_holds ON removals (ends) WHERE ends IS NOT NULL;
"
    };
}

/// What requests are kept in.
macro_rules! optouts {
    () => {
        "
CREATE TABLE optouts (                      -- requests
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused
    state TEXT NOT NULL,
    legal_hold INTEGER NOT NULL CHECK (legal_hold IN (0, 1)),
    hold_id INTEGER REFERENCES removals (id),       -- by which it is withheld
    removal_id INTEGER REFERENCES removals (id),    -- by which it was withdrawn
    request TEXT NOT NULL,                  -- JSON; without what was written in it once it was granted
    stale INTEGER NOT NULL                  -- the step by which something left it that may be in pages that were given up; 0 if nothing may be
) STRICT;
CREATE TABLE optout_events (                -- their steps
    optout_id INTEGER NOT NULL REFERENCES optouts (id),
    n INTEGER NOT NULL,                     -- from 1
    event TEXT NOT NULL,                    -- JSON
    PRIMARY KEY (optout_id, n)
) STRICT, WITHOUT ROWID;
CREATE TABLE suppressions (                 -- what must not come in again
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    optout_id INTEGER NOT NULL REFERENCES optouts (id),
    text BLOB NOT NULL,                     -- keyed hash of the normalised text
    is_part INTEGER NOT NULL CHECK (is_part IN (0, 1)),     -- a passage that must not be a part of a text either
    n_shingles INTEGER NOT NULL,            -- runs of words that it has
    sketch BLOB NOT NULL                    -- keyed hashes of some of them, 8 bytes each, rising
) STRICT;
CREATE INDEX suppressions_of_optout ON suppressions (optout_id);
CREATE TABLE policies (                     -- what was said about sources since they were declared
    source_id INTEGER PRIMARY KEY REFERENCES sources (id),
    policy TEXT NOT NULL                    -- JSON: the policy, and the permissions in force
) STRICT;
CREATE TABLE suppression_key (
    key BLOB NOT NULL                       -- drawn when the store was made
) STRICT;
"
    };
}

/// What makes the version of today of nothing.
pub(super) const SCHEMA: &str = concat!(
    sources!(),
    "CREATE TABLE epochs (
    epoch INTEGER PRIMARY KEY AUTOINCREMENT,
    at_unix_ms INTEGER NOT NULL,
    change TEXT NOT NULL                    -- 'add shard', 'rebuild shard', 'remove', 'suspend', 'resume', 'hold', 'release', 'update source', 'quarantine', 'repair', 'open', 'restore'
) STRICT;
CREATE TABLE shards (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused
    source_id INTEGER NOT NULL REFERENCES sources (id),
    state TEXT NOT NULL CHECK (state IN ('entering', 'live', 'suspended', 'removed')),
    directory TEXT NOT NULL UNIQUE,         -- of the files in force
    manifest_sha256 TEXT NOT NULL,
    model_hash TEXT NOT NULL,
    recipe_hash TEXT NOT NULL,
    n_documents INTEGER NOT NULL,           -- of the files in force, like the next two
    n_tokens INTEGER NOT NULL,
    n_entries INTEGER NOT NULL,
    added_epoch INTEGER REFERENCES epochs (epoch),      -- NULL while it is entering
    removed_epoch INTEGER REFERENCES epochs (epoch),
    withdrawn BLOB,                         -- roaring bitmap: numbers of documents that are withdrawn and still in the files
    gone BLOB                               -- likewise: of those that are gone from the files and not struck out below yet
) STRICT;
CREATE INDEX shards_of_source ON shards (source_id, state);
CREATE TABLE documents (
    shard_id INTEGER NOT NULL REFERENCES shards (id),
    number INTEGER NOT NULL,                -- in the order of the first URIs; kept for ever
    hash BLOB NOT NULL,                     -- SHA-256 of the text
    uri TEXT,                               -- NULL once the document is purged
    PRIMARY KEY (shard_id, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX documents_by_uri ON documents (uri);
CREATE INDEX documents_of_shard_by_uri ON documents (shard_id, uri);
CREATE INDEX documents_by_hash ON documents (hash);
CREATE TABLE other_uris (                   -- under which the same text came
    shard_id INTEGER NOT NULL,
    uri TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (shard_id, uri, number),
    FOREIGN KEY (shard_id, number) REFERENCES documents (shard_id, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX other_uris_by_uri ON other_uris (uri);
",
    removals!(),
    "CREATE TABLE removal_parts (
    removal_id INTEGER NOT NULL REFERENCES removals (id),
    shard_id INTEGER NOT NULL,
    numbers BLOB,                           -- roaring bitmap of document numbers; NULL is the whole shard
    n_documents INTEGER NOT NULL,
    PRIMARY KEY (removal_id, shard_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE backups (
    name TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,                 -- that it holds, or an earlier one
    clean_epoch INTEGER NOT NULL,           -- withdrawals from this epoch on may have bytes in it
    at_unix_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE duplicates (                   -- texts that several shards hold, or held
    hash BLOB PRIMARY KEY
) STRICT, WITHOUT ROWID;
CREATE TABLE quarantined (directory TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;   -- files that were found damaged
CREATE TABLE store (
    id TEXT NOT NULL                        -- drawn when the store was made; a restored store has that of the backup's
) STRICT;
",
    changes!(),
    optouts!(),
    ledger!()
);

/// What makes version 4 of version 3: its log begins when it is opened.
pub(super) const FROM_3: &str = changes!();

/// What makes version 5 of version 4. Tables that point to the old one point to the new one then.
pub(super) const FROM_4: &str = concat!(
    "PRAGMA legacy_alter_table = ON;
ALTER TABLE removals RENAME TO removals_4;
",
    removals!(),
    "INSERT INTO removals SELECT *, NULL FROM removals_4;
DROP TABLE removals_4;
PRAGMA legacy_alter_table = OFF;
",
    optouts!()
);

/// What makes version 6 of version 5.
pub(super) const FROM_5: &str = concat!(
    "PRAGMA legacy_alter_table = ON;
ALTER TABLE sources RENAME TO sources_5;
",
    sources!(),
    "INSERT INTO sources SELECT *, '' FROM sources_5;
DROP TABLE sources_5;
PRAGMA legacy_alter_table = OFF;
",
    ledger!()
);

/// What makes the version of today of version 1, in which shards were withdrawn as a whole and removals were no table. Its shards have files of an
/// older format: they stay, are not retrieved from, and can be removed.
pub(super) const FROM_1: &str = "
ALTER TABLE sources RENAME TO sources_1;
ALTER TABLE epochs RENAME TO epochs_1;
ALTER TABLE shards RENAME TO shards_1;
";

/// What makes version 3 of version 2. As above: the texts are compared when a catalog is opened.
pub(super) const FROM_2: &str = "CREATE TABLE quarantined (directory TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;";

/// The second half, after [`SCHEMA`].
pub(super) const FROM_1_COPY: &str = "
INSERT INTO sources SELECT *, '' FROM sources_1;
INSERT INTO epochs SELECT * FROM epochs_1;
INSERT INTO shards SELECT *, NULL, NULL FROM shards_1;
INSERT INTO removals (epoch, at_unix_ms, kind, selector, chain, purged_at_unix_ms)
    SELECT removed_epoch, at_unix_ms, 'remove', 'shard', '', at_unix_ms
    FROM shards_1 JOIN epochs_1 ON epoch = removed_epoch ORDER BY removed_epoch;
INSERT INTO removal_parts SELECT removals.id, shards_1.id, NULL, n_documents
    FROM removals JOIN shards_1 ON removed_epoch = removals.epoch;
UPDATE sqlite_sequence SET seq = (SELECT seq FROM sqlite_sequence s WHERE s.name = sqlite_sequence.name || '_1')
    WHERE name IN ('sources', 'epochs', 'shards');
DROP TABLE shards_1;
DROP TABLE sources_1;
DROP TABLE epochs_1;
";
