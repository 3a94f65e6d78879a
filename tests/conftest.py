"""Shared fixtures, the order in which tests run side by side, and the place of the data that is not part of the repository."""

import os
from pathlib import Path

import copies
import pytest

# Parity, golden curves and recorded answers are float32, whatever `auto` would take here; programs that a test starts see it too.
os.environ.setdefault("HRM_DTYPE", "float32")
# Before torch is imported: tests run side by side, a thread each, as do the programs that they start.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("HRM_SHARED", ROOT.parent / "shared"))

# these start first
LONGEST = ("container", "pipeline", "notebooks", "site", "sweep", "stale", "train", "benchmarks", "page")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "The longest modules come first; `make test` keeps a module in one process, with what its fixtures have made."
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def executed(tmp_path_factory, worker_id) -> Path:
    "Where notebooks that a test has run are kept for the site: one folder for all processes of this run."
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "executed"


@pytest.fixture(scope="session", autouse=True)
def place(tmp_path_factory):
    "Where the copy of the project is made that every test's own is made of."
    copies.place = tmp_path_factory.mktemp("clean") / "project"


def shared(name: str) -> Path:
    "A file or folder of the shared data; skips the test, saying why, where it is absent."
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is absent: set HRM_SHARED to the folder with the data for tests")
    return path
