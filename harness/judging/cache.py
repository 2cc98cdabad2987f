"""Verdicts kept by content, over all runs."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError, Verdict
from harness.reading import json_value
from harness.storage import disk


class VerdictCache:
    """Verdicts by a hash of judge and exchange, over all runs: scores and labels, never a text."""

    def __init__(self, folder: Path):
        disk.check_writable(folder, "name another cache: --set cache=DIR, or HARNESS_CACHE")
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "verdicts.sqlite"
        try:
            self._table = sqlite3.connect(self._file, timeout=60, isolation_level=None)
            self._table.execute("PRAGMA journal_mode=WAL")
            self._table.execute("PRAGMA synchronous=NORMAL")
            self._table.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, value TEXT)")
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def get(self, key: str) -> dict[str, Any] | None:
        try:
            row = self._table.execute("SELECT value FROM verdicts WHERE key = ?", (key,)).fetchone()
            found: dict[str, Any] | None = json_value(row[0]) if row else None
        except (sqlite3.Error, ValueError) as error:
            raise self._broken(error) from error
        return found

    def put(self, key: str, verdict: Verdict) -> None:
        value = {name: getattr(verdict, name) for name in ("harmful", "label", "score", "model", "rubric")}
        try:
            self._table.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (key, json.dumps(value)))
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> HarnessError:
        return disk.refusal(error) or HarnessError(
            f"{self._file}: cannot be used ({error}); remove it, or name another cache folder"
        )
