"""Shared fixtures and the place of the data that is not part of the repository."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("HRM_SHARED", ROOT.parent / "shared"))


def shared(name: str) -> Path:
    "A file or folder of the shared data; skips the test, saying why, where it is absent."
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is absent: set HRM_SHARED to the folder with the data for tests")
    return path
