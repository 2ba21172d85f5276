"""The schema of SQL stores, as the migrations that led to it.

A migration, once released, is never changed: a new one is added. All run in order, each in a transaction of its own.
"""

from __future__ import annotations

#: By version, from 1 on. BLOB ids: 16 bytes. Times: REAL, seconds since the epoch. JSON in TEXT.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE processes (
            name TEXT PRIMARY KEY, pid INTEGER NOT NULL, host TEXT NOT NULL, started REAL NOT NULL)""",
        """CREATE TABLE tasks (
            id INTEGER PRIMARY KEY, key TEXT NOT NULL, name TEXT NOT NULL, is_flow INTEGER NOT NULL,
            UNIQUE (key, name, is_flow))""",
        "CREATE INDEX tasks_by_name ON tasks (name)",
        """CREATE TABLE kinds (
            id INTEGER PRIMARY KEY, type TEXT NOT NULL, name TEXT NOT NULL, UNIQUE (type, name))""",
        # WITHOUT ROWID: one tree less to write to, and every index ends with the id, in whose order runs are listed.
        """CREATE TABLE runs (
            id BLOB PRIMARY KEY, task INTEGER NOT NULL, kind INTEGER NOT NULL, is_flow INTEGER NOT NULL,
            name TEXT, short INTEGER NOT NULL, flow_id BLOB, parent_id BLOB, upstream TEXT, tags TEXT,
            states TEXT NOT NULL, ended REAL, parameters TEXT, error TEXT, waiting_on TEXT, owner TEXT
        ) WITHOUT ROWID""",
        "CREATE INDEX runs_by_kind ON runs (kind)",
        "CREATE INDEX runs_by_task ON runs (task)",
        "CREATE INDEX runs_by_flow ON runs (flow_id) WHERE flow_id IS NOT NULL",
        "CREATE INDEX runs_of_flows ON runs (is_flow) WHERE is_flow = 1",
        "CREATE INDEX runs_by_owner ON runs (owner) WHERE owner IS NOT NULL",
        "CREATE TABLE run_tags (tag TEXT NOT NULL, id BLOB NOT NULL, PRIMARY KEY (tag, id)) WITHOUT ROWID",
        "CREATE TABLE limits (tag TEXT PRIMARY KEY, size INTEGER NOT NULL)",
    ),
    (
        "ALTER TABLE runs ADD COLUMN result TEXT",
        """CREATE TABLE results (
            digest BLOB PRIMARY KEY, key TEXT NOT NULL, task_name TEXT NOT NULL, run_id BLOB NOT NULL,
            created REAL NOT NULL, expires REAL, serializer TEXT NOT NULL, size INTEGER NOT NULL,
            mac BLOB NOT NULL, file TEXT, payload BLOB) WITHOUT ROWID""",
        "CREATE INDEX results_by_time ON results (created)",
        "CREATE INDEX results_by_task ON results (task_name, created)",
        "CREATE INDEX results_by_expiry ON results (expires) WHERE expires IS NOT NULL",
        "CREATE INDEX results_by_file ON results (file) WHERE file IS NOT NULL",
        """CREATE TABLE logs (
            id BLOB NOT NULL, number INTEGER NOT NULL, time REAL NOT NULL, level INTEGER NOT NULL,
            logger TEXT NOT NULL, message TEXT NOT NULL, PRIMARY KEY (id, number)) WITHOUT ROWID""",
        # One row; its number grows when results were replaced or deleted, so that no process serves an old one.
        "CREATE TABLE cache_epoch (number INTEGER NOT NULL)",
        "INSERT INTO cache_epoch (number) VALUES (0)",
    ),
    (
        "CREATE INDEX runs_by_short ON runs (short)",
        # Names that people gave, by the three-letter pieces in them; the rows' numbers are in the order of the ids.
        """CREATE VIRTUAL TABLE run_names USING fts5 (
            name, id UNINDEXED, tokenize = "trigram case_sensitive 1", detail = none)""",
        "INSERT INTO run_names (rowid, name, id) SELECT name_number(id), name, id FROM runs WHERE name IS NOT NULL",
    ),
)  # fmt: skip
VERSION = len(MIGRATIONS)


def name_number(run_id: bytes) -> int:
    """A run's row number among the given names: in the order of ids, for which 63 bits must do.

    Two runs of one millisecond in two processes meet with a chance of 1 in 2 million; then text finds the later one.
    """
    number = int.from_bytes(run_id, "big")
    return ((number >> 80) << 21 | number & 0x1FFFFF) & 0x7FFFFFFFFFFFFFFF
