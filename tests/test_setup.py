"`make` fills .venv with the locked requirements: by uv, by pip where uv cannot, and with the same packages either way."

import shutil
import zipfile
from pathlib import Path

from copies import BIN, ROOT, environment, shell


def wheel(folder: Path, version: str) -> None:
    "A package `tiny` that knows its version."
    about = f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n"
    files = {
        "tiny.py": f"version = {version!r}\n",
        f"tiny-{version}.dist-info/METADATA": about,
        f"tiny-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    names = [*files, f"tiny-{version}.dist-info/RECORD"]
    with zipfile.ZipFile(folder / f"tiny-{version}-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(names[-1], "".join(f"{name},,\n" for name in names))


def test_both_ways_install_the_same(tmp_path):
    "Of a version's builds the best of all places that pip knows, as of torch's; a uv that fails leaves it to pip."
    project, store, programs = (tmp_path / name for name in ("project", "store", "programs"))
    for folder in (project, store, programs):
        folder.mkdir()
    shutil.copy(ROOT / "Makefile", project)
    wheel(store, "1.0"), wheel(store, "1.0+cpu"), wheel(store, "1.1")
    here = {"PATH": f"{programs}:{environment()['PATH']}", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(store)}
    asked = "import tiny, importlib.metadata as m; print(tiny.version, m.distribution('tiny').read_text('INSTALLER'))"
    for by, uv in {"uv": f"exec {BIN}/uv", "pip": "exit 2 #"}.items():
        (programs / "uv").write_text(f'#!/bin/sh\n{uv} "$@"\n')
        (programs / "uv").chmod(0o755)
        (project / "requirements.lock").write_text("tiny==1.0 ; python_version > '3'\n")
        done = shell("make", ".venv/.locked", cwd=project, UV_CACHE_DIR=str(tmp_path / "cache"), **here)
        assert ("uv could not; pip does it" in done.stderr) == (by == "pip"), done.stderr
        assert shell(project / ".venv/bin/python", "-c", asked, cwd=project).stdout.split() == ["1.0+cpu", by]
        assert shell("make", "-q", ".venv/.locked", cwd=project, ok=False).returncode == 0, "once is enough"
        shell(project / ".venv/bin/python", "-m", "pip", "uninstall", "-qy", "tiny", cwd=project)


def test_uv_is_told_what_pip_knows(tmp_path):
    "Index, further indexes and certificates, the environment's over those of a file; and nothing that pip does not say."
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://a.example/simple\nextra-index-url =\n    https://b.example/simple\n"
        "    https://c.example/simple\ntimeout = 5\n[install]\nconstraint = /c.txt\n"
    )
    (tmp_path / "uv").write_text("#!/bin/sh\nenv | grep -E '^(UV_|SSL_CERT_FILE)' | sort\n")
    (tmp_path / "uv").chmod(0o755)
    rule = f'include {ROOT}/Makefile\nBIN = {BIN}\ntold:\n\t@set -a; eval "$$($(AS_PIP))"; {tmp_path}/uv\n'
    (tmp_path / "told.mk").write_text(rule)
    here = [f"-u{key}" for key in environment() if key.startswith(("UV_", "PIP_")) or key == "SSL_CERT_FILE"]
    line = ("env", *here, f"PIP_CONFIG_FILE={config}", "PIP_CERT=/own.pem", "PIP_INDEX_URL=https://d.example/simple")
    told = shell(*line, "make", "-s", "-f", "told.mk", "told", cwd=tmp_path).stdout.splitlines()
    assert told == [
        "SSL_CERT_FILE=/own.pem",
        "UV_CONSTRAINT=/c.txt",
        "UV_DEFAULT_INDEX=https://d.example/simple",
        "UV_INDEX=https://b.example/simple https://c.example/simple",
        "UV_INDEX_STRATEGY=unsafe-best-match",
    ]
