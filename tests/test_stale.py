"What makes a stage stale, told by DVC itself, and what a new stage touches."

import json
import shutil
import sys
from pathlib import Path

import pytest
import test_rules as rules
from copies import ROOT, copy_project, shell
from hrm.core.pipeline import pipeline, reported
from ruamel.yaml import YAML

DVC = (sys.executable, "-m", "dvc")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    "The chapters and the package with this project's stage `code`, and below it one stage per chapter that costs nothing."
    folder = tmp_path_factory.mktemp("stale")
    for name in ("hrm", "nbs/chapters"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    blocks = pipeline()
    stages = {"code": blocks["code"]} | {
        stage: {
            "cmd": f"mkdir -p out && date > out/{stage}",
            "deps": [dep for dep in block["deps"] if dep.startswith("data/code/")],
            "outs": [f"out/{stage}"],
        }
        for stage, block in blocks.items()
        if stage != "code"
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    shell(*DVC, "init", "--no-scm", "-q", cwd=folder)
    shell(*DVC, "repro", "-q", cwd=folder)
    assert stale(folder) == set()
    return folder


def stale(folder: Path) -> set[str]:
    "The stages that DVC would run, once the closures are written."
    shell(*DVC, "repro", "-q", "code", cwd=folder)
    return set(json.loads(shell(*DVC, "status", "--json", cwd=folder).stdout))


def changed(folder: Path, file: str, old: str, new: str) -> None:
    "Replace a text that stands in a file once."
    text = (folder / file).read_text(encoding="utf-8")
    assert text.count(old) == 1, (file, old)
    (folder / file).write_text(text.replace(old, new), encoding="utf-8")


def test_a_docstring_makes_nothing_stale(project):
    before = {path: path.stat().st_mtime_ns for path in (project / "data/code").iterdir()}
    assert len(before) == len(pipeline()) - 1
    changed(
        project,
        "hrm/core/config.py",
        '"The names of the profiles, in the file\'s order."',
        '"The profiles\' names, in order."  # as written',
    )
    shell(sys.executable, "-m", "hrm.tools.stage", "code", cwd=project)
    assert {path: path.stat().st_mtime_ns for path in (project / "data/code").iterdir()} == before, (
        "untouched, not written again"
    )
    assert stale(project) == set()


def test_a_chapters_prose_makes_nothing_stale(project):
    path = next((project / "nbs/chapters").glob("*_sudoku_train.ipynb"))
    chapter = json.loads(path.read_text())
    chapter["cells"].insert(1, {"cell_type": "markdown", "id": "more", "metadata": {}, "source": "One more sentence."})
    chapter["metadata"]["kernelspec"]["name"] = "somebodys-own"
    path.write_text(json.dumps(chapter))
    assert stale(project) == set()


def test_caches_of_python_are_no_code(project):
    (project / "hrm/core/__pycache__").mkdir(exist_ok=True)
    (project / "hrm/core/__pycache__/config.cpython-311.pyc").write_bytes(b"compiled")
    assert json.loads(shell(*DVC, "status", "--json", cwd=project).stdout) == {}


def test_a_constant_three_imports_away_makes_exactly_those_stale_that_reach_it(project):
    """The chapters import hrm.memory.train, which imports hrm.memory.model, which imports hrm.memory.titans;
    that of the shipped weights ships a memory model too."""
    changed(project, "hrm/memory/titans.py", "    place: int = 0  # ", "    place: int = 1  # ")
    assert stale(project) == {"memory_train", "memory_optim", "memory_titans", "memory_evaluate", "weights"}
    changed(project, "hrm/memory/titans.py", "    place: int = 1  # ", "    place: int = 0  # ")
    assert stale(project) == set()


def test_a_module_that_no_chapter_reaches_makes_nothing_stale(project):
    changed(project, "hrm/__init__.py", '__version__ = "', '__version__ = "9')
    (project / "hrm/core/unheard_of.py").write_text("x = 1\n")
    assert stale(project) == set()


TOY = """
  toy_train:
    matrix: {run: "${run}"}
    cmd: python -m hrm.tools.stage run toy_train ${item.run}
    params: [profiles.laptop.toy.train, "profiles.${item.run}.toy.train"]
    deps: [data/code/85_toy_train.txt]
    outs: ["data/${item.run}/toy/train", "reports/${item.run}/toy_train": {cache: false}]

"""
CELLS = (
    "from hrm.core.config import section\nfrom hrm.core.files import write_atomic\nfrom hrm.core.report import Claim, Stage\n"
    "from hrm.machine.benchmark import BenchmarkConfig",
    'stage, config = Stage("toy_train", profile), section(profile, "toy.train", BenchmarkConfig)\n'
    'write_atomic(stage.data / "toy.txt", "trained")\nstage.metrics({"exact": 0.5})\nstage.timings({"seconds": 60, "tflop": 1})\n'
    'stage.claims([Claim("S1-9999", "a toy trains", "works", "0.5", "make repro")])\n'
    'stage.figures({"toy.exact": {"value": 0.5, "unit": "share"}})',
)


def add_toy(project: Path) -> None:
    "A new stage: its chapter, its section of each profile, its block in dvc.yaml."
    code = [
        {
            "cell_type": "code",
            "id": f"c{i}",
            "metadata": {"tags": ["parameters"]} if i == 0 else {},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for i, source in enumerate(('profile = "smoke"', *CELLS))
    ]
    title = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# A toy\n\n> It trains"}
    (project / "nbs/chapters/85_toy_train.ipynb").write_text(
        json.dumps({"cells": [title, *code], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    yaml, file = YAML(), project / "params.yaml"
    params = yaml.load(file)
    for systems in params["profiles"].values():
        systems["toy"] = {"train": json.loads(json.dumps(systems["machine"]["benchmark"]))}
    yaml.dump(params, file)
    text = (project / "dvc.yaml").read_text()
    text = text.replace("\n  # The book", f"{TOY}\n  # The book")
    lists = ", ".join(f"reports/{profile}/toy_train/metrics.json" for profile in params["run"])
    (project / "dvc.yaml").write_text(text.replace("metrics: [\n", f"metrics: [\n  {lists},\n"))


def test_a_new_stage_touches_its_chapter_the_parameters_and_the_pipeline(tmp_path, monkeypatch):
    project = copy_project(tmp_path / "with_a_toy")
    monkeypatch.setenv("HRM_ROOT", str(project))
    add_toy(project)
    changes = [line.split()[-1] for line in shell("git", "status", "--short", cwd=project).stdout.splitlines()]
    assert sorted(changes) == ["dvc.yaml", "nbs/chapters/85_toy_train.ipynb", "params.yaml"]
    shell(*DVC, "repro", "-q", "toy_train@laptop", cwd=project)
    assert (project / "data/laptop/toy/train/toy.txt").read_text() == "trained"
    for rule in (
        rules.test_one_name_all_the_way,
        rules.test_a_stage_depends_on_its_closure_its_data_and_its_parameters,
        rules.test_a_chapter_reads_only_reports_that_its_stage_depends_on,
        rules.test_metrics_and_plots_of_every_stage_are_listed,
        rules.test_chapters_take_the_profile_and_nothing_else,
        rules.test_every_section_of_every_profile_is_valid,
    ):
        rule()
    for file in ("figures.json", "claims.json", "timings.json"):
        assert "toy_train" in reported("laptop", file)
    shown = shell(*DVC, "metrics", "show", "--json", "reports/laptop/toy_train/metrics.json", cwd=project).stdout
    assert '"exact": 0.5' in shown
    before = {file: json.loads((project / "reports" / file).read_text()) for file in ("figures.json", "claims.json")}
    shell(sys.executable, "-m", "hrm.tools.stage", "run", "book", cwd=project)
    after = {file: json.loads((project / "reports" / file).read_text()) for file in before}
    measured = {
        name
        for file in (project / "reports/benchmarks").glob("*.json")
        for name in json.loads(file.read_text()).get("figures", {})
    }
    assert set(after["figures.json"]) - set(before["figures.json"]) - measured == {"toy.exact"}
    assert [row["id"] for row in after["claims.json"] if row not in before["claims.json"]] == ["S1-9999"]
    timed = {
        stage: said["stage"]["seconds"] for stage, said in reported("laptop", "timings.json").items() if "stage" in said
    }
    assert timed["toy_train"] > 0
    assert after["figures.json"]["book.minutes"]["value"] == pytest.approx(sum(timed.values()) / 60)
