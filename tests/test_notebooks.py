"The library notebooks run from top to bottom: each of their checks holds. Chapters are run by the pipeline's test."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from copies import ROOT
from nbdev.doclinks import nbglob
from test_rules import CHAPTERS, NOTEBOOKS, name

LIBRARY = [path for path in NOTEBOOKS if path not in CHAPTERS and path.parent.name != "guides"]
RUNNER = """
import io, json, sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb

asked, answers = (open(int(number), mode) for number, mode in zip(sys.argv[1:], "rw"))
root = Path.cwd()
for notebook in map(str.strip, asked):
    sys.__stderr__ = said = io.StringIO()
    passed, _ = test_nb(Path(notebook), skip_flags=get_config(root).tst_flags.split(), basepath=root)
    print(json.dumps([passed, said.getvalue()]), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def apart():
    """A program that runs notebooks one after the other by nbdev's own test, so that torch is imported once and nothing of
    them stays here. No child of `multiprocessing`, since those start no helpers, and notebooks show some.
    """
    (theirs, ours), (answers, given) = os.pipe(), os.pipe()
    program = [sys.executable, "-c", RUNNER, str(theirs), str(given)]
    child = subprocess.Popen(program, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=(theirs, given))
    os.close(theirs), os.close(given)
    with child, open(answers) as heard, open(ours, "w") as asked:

        def run(notebook: Path) -> tuple[bool, str]:
            "Whether a notebook passes, and what was said if not."
            print(notebook, file=asked, flush=True)
            return json.loads(heard.readline() or '[false, "the program that runs notebooks has died"]')

        yield run
        asked.close()


@pytest.mark.parametrize("notebook", LIBRARY, ids=name)
def test_library_notebook_runs(notebook, apart):
    passed, said = apart(notebook)
    assert passed, said
    assert said == ""


def test_these_are_the_notebooks_that_nbdev_tests(monkeypatch):
    "Its own list, without the folders that say `.notest`: the chapters, and the guides, which the site runs."
    monkeypatch.chdir(ROOT)
    listed = [path.resolve() for path in nbglob(as_path=True) if not path.with_name(".notest").exists()]
    assert sorted(listed) == sorted(LIBRARY)
    assert not [path for path in listed if path.parent.name in ("chapters", "guides")]
