"""The database file of the event log: its tables, how it is opened, and how an older one is brought up to date."""

import logging
import os
import re
import sqlite3
from pathlib import Path

from ..errors import ConfigError
from .model import new_id

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2
# The part of an event's key that is its `seq`; the stream's key stands above it.
SHIFT = 40
SEQ_MASK = (1 << SHIFT) - 1
# A file from before space was given back is written anew at the start if it holds no more than this.
_MAX_REWRITTEN_BYTES = 512 * 1024 * 1024
_BLOB_ID = re.compile(rb'"blob_id":"(blob_[0-9a-f]+)"')

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, type TEXT NOT NULL, turn TEXT, parent TEXT, data BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS turn_starts ON events (id) WHERE type = 'turn_started';
CREATE TABLE IF NOT EXISTS wholes (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS blobs (
  stream INTEGER NOT NULL, id TEXT NOT NULL, mime_type TEXT NOT NULL, data BLOB NOT NULL, seq INTEGER,
  PRIMARY KEY (stream, id)
);
"""
_INDEXES = "CREATE INDEX IF NOT EXISTS blobs_of_events ON blobs (stream, seq);"


def key_of(stream: int, seq: int) -> int:
    """The key of an event. Raises `ValueError` for a `seq` that would be of another stream."""
    if not 0 <= seq <= SEQ_MASK:
        raise ValueError(f"{seq} is no seq")
    return (stream << SHIFT) | seq


def connect(path: Path, schema: str) -> sqlite3.Connection:
    """The writing connection, with its tables; `schema` makes those of others.

    Raises `sqlite3.DatabaseError` for a file that is no sound database, and `ConfigError` for one of another version.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite gives its other files the same mode
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        # before all else: it only counts for a file without tables
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: with NORMAL a power cut may lose commits, and their seq would be given out again.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 2000")
        connection.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}{schema};COMMIT;")
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('log_id', ?)", (new_id("log"),))
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),))
        version = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()[0]
        if version == "1":
            _own_blobs(connection)
        elif version != str(SCHEMA_VERSION):
            raise ConfigError(
                f"{path} was written by another version (schema {version}). Use that, or name another folder with --state-path."
            )
        connection.execute(_INDEXES)
        _give_space_back(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _own_blobs(connection: sqlite3.Connection) -> None:
    """From version 1 to 2: each blob belongs to the event that tells of it. What no event tells of is removed."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("ALTER TABLE blobs ADD COLUMN seq INTEGER")
        owners = connection.execute(
            "SELECT id, data FROM events WHERE type IN ('tool_result', 'user_message') UNION ALL SELECT id, data FROM wholes"
        )
        found = [
            (key & SEQ_MASK, key >> SHIFT, blob.decode())
            for key, data in owners
            if b'"blob_id":"blob_' in data
            for blob in _BLOB_ID.findall(data)
        ]
        connection.executemany("UPDATE blobs SET seq = ? WHERE stream = ? AND id = ?", found)
        connection.execute("DELETE FROM blobs WHERE seq IS NULL")
        connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (str(SCHEMA_VERSION),))
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def _give_space_back(connection: sqlite3.Connection) -> None:
    """See that what is removed leaves the file. One from before that must be written anew once: as long as that is quick."""
    if _pragma(connection, "auto_vacuum") != 2:
        pages, free = _pragma(connection, "page_count"), _pragma(connection, "freelist_count")
        if (pages - free) * _pragma(connection, "page_size") <= _MAX_REWRITTEN_BYTES:
            try:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("VACUUM")
            except sqlite3.OperationalError as fault:  # no room for a copy: the next start tries again
                logger.warning("the event log could not be made smaller: %s", fault)
    # what is removed is overwritten: of itself where its page is written anyway, the rest by giving the pages back
    gives_back = _pragma(connection, "auto_vacuum") == 2
    connection.execute(f"PRAGMA secure_delete = {'FAST' if gives_back else 'ON'}").fetchall()


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
