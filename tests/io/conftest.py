"""A folder with a file of loaders, as a user would write it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from data_cases import LOADERS


@pytest.fixture
def loaders(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(textwrap.dedent(LOADERS))
    return tmp_path
