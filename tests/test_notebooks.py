"The library notebooks run from top to bottom: each of their checks holds."

import re

from copies import BIN, ROOT, shell


def test_library_notebooks_run():
    "All in one go, so that torch is imported once; chapters are run by the pipeline's test."
    done = shell(BIN / "nbdev-test", "--n-workers", "0", "--do-print", cwd=ROOT, ok=False)
    printed = done.stdout + done.stderr
    started = re.findall(r"Starting \S*?(?:nbs/)?([\w/]+\.ipynb)", printed)
    assert done.returncode == 0, printed[-6000:]
    assert "Success" in printed and not [name for name in started if name.startswith("chapters/")]
