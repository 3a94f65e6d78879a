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
import json, os, sys
from pathlib import Path
from hrm.tools.site import code_key, execute

asked, answers = (open(int(number), mode) for number, mode in zip(sys.argv[1:], "rw"))
root, kept = Path.cwd(), Path(sys.argv[3])
for notebook in map(Path, map(str.strip, asked)):
    whole = kept / notebook.relative_to(root / "nbs")
    part = whole.with_suffix(".part")
    error = execute(notebook, part, code_key(notebook, root))
    part.rename(whole)
    print(json.dumps(error), file=answers, flush=True)
os._exit(0)  # whatever a notebook has left running
"""


@pytest.fixture(scope="module")
def apart(executed):
    """A program that runs notebooks one after the other as nbdev's own test does, so that torch is imported once and nothing
    of them stays here. No child of `multiprocessing`, since those start no helpers, and notebooks show some.
    """
    (theirs, ours), (answers, given) = os.pipe(), os.pipe()
    program = [sys.executable, "-c", RUNNER, str(theirs), str(given), str(executed)]
    child = subprocess.Popen(program, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=(theirs, given))
    os.close(theirs), os.close(given)
    with child, open(answers) as heard, open(ours, "w") as asked:

        def run(notebook: Path) -> str:
            "What went wrong in a notebook; empty if nothing did."
            print(notebook, file=asked, flush=True)
            return json.loads(heard.readline() or '"the program that runs notebooks has died"')

        yield run
        asked.close()


@pytest.mark.parametrize("notebook", LIBRARY, ids=name)
def test_library_notebook_runs(notebook, apart):
    assert apart(notebook) == ""


def test_these_are_the_notebooks_that_nbdev_tests(monkeypatch):
    "Its own list, without the folders that say `.notest`: the chapters, and the guides, which the site runs."
    monkeypatch.chdir(ROOT)
    listed = [path.resolve() for path in nbglob(as_path=True) if not path.with_name(".notest").exists()]
    assert sorted(listed) == sorted(LIBRARY)
    assert not [path for path in listed if path.parent.name in ("chapters", "guides")]
