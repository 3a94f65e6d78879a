"The whole pipeline at the smoke profile, in clean copies: it runs, runs once, gives the same bytes twice, and can be shared."

import filecmp
import functools
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from copies import commit, copy_project, shell

from hrm.tools.dvc import stage_groups

DVC = (sys.executable, "-m", "dvc")
SMOKE = (sys.executable, "-m", "hrm.tools.stage", "dvc", "--profile", "smoke")  # as in `make smoke`
COLD = (*DVC, "repro", "--glob", "sudoku_*@smoke")  # one stage after the other, and each kernel starts from nothing
MACHINE = {"timings.json"}  # files that say how long something took
MACHINE_STAGES = {"environment", "machine_benchmark", "machine_guide"}  # stages that say what this machine is


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> tuple[Path, Path]:
    "Two clean copies in folders of different names, reproduced at the smoke profile at the same time, one partly cold."
    copies = [copy_project(tmp_path_factory.mktemp(name) / name) for name in ("first", "second_one")]

    def reproduce(copy: Path, *lines: tuple[str, ...]) -> None:
        for line in lines:
            shell(*line, cwd=copy, OMP_NUM_THREADS="1")

    with ThreadPoolExecutor(len(copies)) as pool:
        for done in [pool.submit(reproduce, copies[0], SMOKE), pool.submit(reproduce, copies[1], COLD, SMOKE)]:
            done.result()
    commit(copies[0], "Results")
    return tuple(copies)


def results(project: Path) -> dict[str, Path]:
    "Every file that the smoke stages left, by its name in the project, without those that describe time or machine."
    found = {}
    for folder in ("data/smoke", "reports/smoke"):
        for path in sorted((project / folder).rglob("*")):
            inside = path.relative_to(project / folder).parts
            if path.is_file() and path.name not in MACHINE and inside[0] not in MACHINE_STAGES:
                found[path.relative_to(project).as_posix()] = path
    return found


@functools.cache
def stages(project: Path) -> list[str]:
    "The stages of the smoke profile."
    listed = shell(*DVC, "stage", "list", "--name-only", cwd=project).stdout.split()
    return [name for name in listed if name.endswith("@smoke")]


def test_every_stage_left_its_chapter_and_metrics(twins):
    names = [name.removesuffix("@smoke") for name in stages(twins[0])]
    assert names
    for name in names:
        chapter = json.loads((twins[0] / "reports" / "smoke" / name / f"{name}.ipynb").read_text())
        assert chapter["nbformat_minor"] >= 5
        code = [cell for cell in chapter["cells"] if cell["cell_type"] == "code"]
        assert code and all(cell["execution_count"] is None for cell in code)
        assert not [o for cell in code for o in cell["outputs"] if o["output_type"] == "error"]
        assert str(twins[0]) not in json.dumps(chapter), f"{name}: the folder of the project is in the executed chapter"


def test_smoke_needs_nothing_of_the_laptop_profile(twins):
    assert not (twins[0] / "data" / "laptop").exists()
    printed = shell(*DVC, "repro", "--glob", "*@smoke", "--dry", "--force", cwd=twins[0]).stdout
    assert "@smoke" in printed and "@laptop" not in printed and "'book'" not in printed
    side_by_side = [f"{name}@smoke" for group in stage_groups(2) for name in group]
    assert sorted(side_by_side) == sorted(stages(twins[0])), "what `make smoke` runs"


def test_second_repro_runs_nothing(twins):
    printed = shell(*SMOKE, cwd=twins[0]).stdout
    assert "Running stage" not in printed
    assert printed.count("didn't change, skipping") >= len(stages(twins[0]))


def test_two_copies_give_equal_bytes(twins):
    first, second = map(results, twins)
    assert set(first) == set(second)
    assert len(first) >= len(stages(twins[0]))
    assert [name for name in first if not filecmp.cmp(first[name], second[name], shallow=False)] == []


def test_prose_runs_no_stage(twins, tmp_path):
    path = next(iter(sorted((twins[1] / "nbs" / "chapters").glob("12_*.ipynb"))))
    chapter = json.loads(path.read_text())
    prose = next(cell for cell in chapter["cells"] if cell["cell_type"] == "markdown")
    prose["source"] = ["".join(prose["source"]) + "\n\nOne more sentence."]
    path.write_text(json.dumps(chapter, indent=1))
    printed = shell(*SMOKE, cwd=twins[1]).stdout
    assert re.findall(r"Running stage '(.*)'", printed) == ["code"]


def test_metrics_show(twins):
    shown = json.loads(shell(*DVC, "metrics", "show", "--json", cwd=twins[0]).stdout)
    files = {name for entry in shown.values() for name in entry.get("data", {})}
    assert "reports/smoke/sudoku_train/metrics.json" in files


def test_plots_show_needs_no_network(twins):
    shell(*DVC, "plots", "show", cwd=twins[0])
    page = (twins[0] / "dvc_plots" / "index.html").read_text()
    assert "vegaEmbed(" in page and "reports_smoke_sudoku_train_curve_csv" in page
    tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", re.sub(r"<script>.*?</script>", "", page, flags=re.S))
    assert [tag for tag in tags if "//" in tag] == []


def test_experiment_changes_one_number(twins):
    change = "++profiles.smoke.sudoku.data.seed=1"  # which the profile has from laptop
    printed = shell(*DVC, "exp", "run", "-S", change, "sudoku_data@smoke", cwd=twins[0])
    shown = shell(*DVC, "exp", "show", "--csv", cwd=twins[0]).stdout
    assert len(shown.splitlines()) >= 3, printed.stdout  # head, workspace, at least one experiment
    assert "seed: 1" in (twins[0] / "params.yaml").read_text()
    changed = results(twins[0])
    same = [
        n
        for n, path in results(twins[1]).items()
        if n.startswith("data/smoke/sudoku/data")
        and path.suffix == ".npy"
        and n in changed
        and filecmp.cmp(path, changed[n], shallow=False)
    ]
    assert not [name for name in same if "inputs" in name], "another seed, yet the same puzzles"
    shell("git", "checkout", "-q", "--", "params.yaml", "dvc.lock", cwd=twins[0])
    shell(*DVC, "checkout", "--force", "--allow-missing", cwd=twins[0])


def test_push_and_pull_through_a_folder(twins, tmp_path):
    shell(*DVC, "remote", "add", "--default", "store", tmp_path / "store", cwd=twins[0])
    commit(twins[0], "A remote")
    shell(*DVC, "push", "sudoku_data@smoke", "sudoku_train@smoke", cwd=twins[0])
    clone = tmp_path / "clone"
    shell("git", "clone", "-q", twins[0], clone, cwd=tmp_path)
    shell(*DVC, "pull", "sudoku_data@smoke", "sudoku_train@smoke", "--allow-missing", cwd=clone)
    mine, theirs = (
        {n: path for n, path in results(project).items() if n.startswith("data/smoke/sudoku/")}
        for project in (twins[0], clone)
    )
    assert mine and set(mine) == set(theirs)
    assert all(filecmp.cmp(mine[name], theirs[name], shallow=False) for name in mine)


def test_every_figure_is_in_its_executed_chapter(twins):
    "A figure that a chapter saves is also seen in the notebook, not only beside it."
    for path in sorted((twins[0] / "reports" / "smoke").rglob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and "stage.figure(" in source:
                kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
                assert "image/png" in kinds, f"{path.name}: no picture under {source[-80:]!r}"
