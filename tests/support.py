"""What several test modules share: where the reference data lie, and the golden values."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

_REPOSITORY = Path(__file__).resolve().parents[1]


def shared_path(name: str) -> Path:
    """The file or folder `name` of the shared reference data; skips the test where it is absent."""
    root = Path(os.environ.get("SHIFTSCOPE_SHARED") or _REPOSITORY.parent / "shared")
    path = root / name
    if not path.exists():
        pytest.skip(f"reference data {name!r} not found; set SHIFTSCOPE_SHARED to their folder")
    return path


def golden(name: str) -> Any:
    """The content of golden/`name`.json."""
    return json.loads(shared_path(f"golden/{name}.json").read_text(encoding="utf-8"))
