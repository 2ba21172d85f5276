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
        # Of states. Tasks and flows have each their own, so that an index of them tells one from the other.
        """CREATE TABLE kinds (
            id INTEGER PRIMARY KEY, type TEXT NOT NULL, name TEXT NOT NULL, is_flow INTEGER NOT NULL,
            UNIQUE (type, name, is_flow))""",
        # WITHOUT ROWID: one tree less to write to, and every index ends with the id, in whose order runs are listed.
        # `short` is the number in the name of a run that was given none, and NULL in those that were.
        """CREATE TABLE runs (
            id BLOB PRIMARY KEY, task INTEGER NOT NULL, kind INTEGER NOT NULL, is_flow INTEGER NOT NULL,
            name TEXT, short INTEGER, flow_id BLOB, parent_id BLOB, upstream TEXT, tags TEXT,
            states TEXT NOT NULL, ended REAL, parameters TEXT, error TEXT, waiting_on TEXT, owner TEXT
        ) WITHOUT ROWID""",
        "CREATE INDEX runs_by_kind ON runs (kind)",
        "CREATE INDEX runs_by_task ON runs (task, id, short)",
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
        "CREATE INDEX runs_by_short ON runs (short, task)",
        # Names that people gave, by the three-letter pieces in them; the rows' numbers are in the order of the ids.
        """CREATE VIRTUAL TABLE run_names USING fts5 (
            name, id UNINDEXED, tokenize = "trigram case_sensitive 1", detail = none)""",
        "INSERT INTO run_names (rowid, name, id) SELECT name_number(id), name, id FROM runs WHERE name IS NOT NULL",
    ),
    (
        # Of tags and by name. `resets` grows when somebody frees all slots; `full_at`: see `rates`.
        """CREATE TABLE named_limits (
            name TEXT PRIMARY KEY, size INTEGER NOT NULL, decay REAL NOT NULL DEFAULT 0,
            is_active INTEGER NOT NULL DEFAULT 1, resets INTEGER NOT NULL DEFAULT 0,
            full_at REAL NOT NULL DEFAULT 0)""",
        "INSERT INTO named_limits (name, size) SELECT 'tag:' || tag, size FROM limits",
        "DROP TABLE limits",
        "ALTER TABLE named_limits RENAME TO limits",
        # What each process has of a limit, wants of it, and since when; times are monotonic seconds of this machine.
        # `told`: when it last told who holds and who waits (`people`, JSON), which it does when asked. `needs` (JSON):
        # what those who hold its slots wait for, see `gridlocks`; when it first told so, and when for the last time.
        """CREATE TABLE slots (
            name TEXT NOT NULL, process TEXT NOT NULL, held INTEGER NOT NULL, wanted INTEGER NOT NULL,
            since REAL NOT NULL, told REAL NOT NULL DEFAULT 0, people TEXT,
            needs TEXT, first_told REAL NOT NULL DEFAULT 0, last_told REAL NOT NULL DEFAULT 0,
            PRIMARY KEY (name, process)
        ) WITHOUT ROWID""",
    ),
)  # fmt: skip
VERSION = len(MIGRATIONS)
#: Times of names beyond this one, in the year 2109, count as this one.
MOST_MILLISECONDS = (1 << 42) - 1
#: How far up in a name's row number its milliseconds are; below them the order is not quite that of the ids.
NUMBER_SHIFT = 21


def name_number(run_id: bytes) -> int:
    """A run's row number among the given names: in the order of ids, for which 63 bits must do.

    Two runs of one millisecond in two processes meet with a chance of 1 in 2 million; then text finds the later one.
    """
    number = int.from_bytes(run_id, "big")
    return first_number(number >> 80) | number & 0x1FFFFF


def first_number(milliseconds: int) -> int:
    """The least number of a name of this millisecond."""
    return min(max(milliseconds, 0), MOST_MILLISECONDS) << NUMBER_SHIFT
