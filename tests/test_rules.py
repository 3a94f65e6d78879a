"The rules of the house, read from the files: nothing here runs a model."

import ast
import configparser
import copy
import filecmp
import functools
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from copies import BIN, ROOT, shell
from hrm.core.closure import acts, imported, module_file
from hrm.core.config import ConfigError, load_params, profiles, root, section, validate
from hrm.core.pipeline import chapters, data_path, pipeline, report_path, sections
from hrm.tools.stage import closure_file
from ruamel.yaml import YAML

SYSTEMS = {
    "puzzles",
    "puzzle",
    "sudoku",
    "maze",
    "arc",
    "machine",
    "dialogue",
    "routing",
    "text",
    "memory",
    "checkpoints",
}
ON_PUZZLES = {"puzzle", "sudoku", "maze", "arc"}
NOTEBOOKS = sorted(
    path
    for path in (ROOT / "nbs").rglob("*.ipynb")
    if not any(part.startswith((".", "_")) for part in path.relative_to(ROOT).parts)
)
GUIDES = [path for path in NOTEBOOKS if path.parent.name == "guides"]
LIBRARY = [path for path in NOTEBOOKS if path.parent.name not in ("nbs", "chapters", "guides")]
CHAPTERS = [path for path in NOTEBOOKS if path.parent.name == "chapters"]
MODULES = sorted(path for path in (ROOT / "hrm").rglob("*.py") if "__pycache__" not in path.parts)


def name(path: Path) -> str:
    "A file as the reader of a failure wants to see it."
    return path.relative_to(ROOT).as_posix()


def cells(path: Path, kind: str | None = None) -> list[dict]:
    "The cells of a notebook, their source as one text."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in found if kind in (None, cell["cell_type"])]


def directives(source: str) -> list[str]:
    "The `#| ...` lines at the head of a cell."
    return [line[2:].strip() for line in source.splitlines() if line.startswith("#|")]


def exported(path: Path) -> list[str]:
    "The sources of the cells that go into the package."
    return [
        cell["source"]
        for cell in cells(path, "code")
        if {d.split()[0] for d in directives(cell["source"]) if d} & {"export", "exports", "exporti"}
    ]


def tracked() -> list[Path]:
    "The text files that are, or are about to be, in git."
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("not a git repository: there is no list of the files that belong to it")
    return [ROOT / n for n in listing.stdout.split("\0") if n and (ROOT / n).is_file()]


# Notebooks and what is made of them


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    "A copy of the notebooks, exported into an empty package and cleaned."
    copy = tmp_path_factory.mktemp("made")
    for file in ("pyproject.toml", "params.yaml"):
        shutil.copy(ROOT / file, copy)
    (copy / "README.md").touch()
    shutil.copytree(ROOT / "nbs", copy / "nbs")
    (copy / "hrm").mkdir()
    shutil.copy(ROOT / "hrm" / "__init__.py", copy / "hrm")
    shell(BIN / "nbdev-export", cwd=copy)
    shell(BIN / "nbdev-clean", cwd=copy)
    return copy


def differing(folder: str, pattern: str, made: Path) -> list[str]:
    "Files of a folder that are not the same here and there."

    def named(top):
        return {
            p.relative_to(top)
            for p in (top / folder).rglob(pattern)
            if not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts)
        }

    return sorted(
        str(p)
        for p in named(ROOT) | named(made)
        if not ((ROOT / p).is_file() and (made / p).is_file() and filecmp.cmp(ROOT / p, made / p, shallow=False))
    )


def test_export_leaves_no_difference(made):
    assert differing("hrm", "*.py", made) == [], "run `make notebooks`; never edit hrm/"


def test_notebooks_are_clean(made):
    assert differing("nbs", "*.ipynb", made) == [], "run `make notebooks`"


def test_notebooks_and_tests_are_formatted():
    printed = shell(BIN / "ruff", "format", "--check", "--quiet", cwd=ROOT, ok=False)
    assert printed.stdout + printed.stderr == "", "run `ruff format`"


def test_library_lines_fit():
    "What a formatter cannot break: texts and comments. Chapters follow as they are touched."
    long = [
        f"{name(path)}: {line.strip()[:80]}"
        for path in LIBRARY
        for cell in cells(path, "code")
        for line in cell["source"].splitlines()
        if len(line) > 120
    ]
    assert long == [], "lines of more than 120 characters"


def test_one_notebook_is_one_module():
    targets = Counter()
    for path in LIBRARY:
        named = [
            d.split()[1]
            for cell in cells(path, "code")
            for d in directives(cell["source"])
            if d.startswith("default_exp")
        ]
        assert len(named) == 1, name(path)
        targets[named[0]] += 1
    assert [target for target, n in targets.items() if n > 1] == []


def test_no_module_without_a_notebook():
    orphans = []
    for path in MODULES:
        source = notebook_of(path)
        if source is None and (path.name == "_modidx.py" or path.name == "__init__.py" and not acts(path)):
            continue
        if source is None or not source.is_file():
            orphans.append(name(path))
    assert orphans == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_cells_have_ids(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) >= (4, 5)
    ids = [cell.get("id") for cell in notebook["cells"]]
    assert all(ids) and len(set(ids)) == len(ids)


@pytest.mark.parametrize("path", LIBRARY + CHAPTERS + GUIDES, ids=name)
def test_title_and_subtitle(path):
    prose = cells(path, "markdown")
    assert prose and re.match(r"# \S.*\n+> \S", prose[0]["source"]), "the first prose is `# Title` and `> one sentence`"


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_library_notebook_reads_as_prose_with_code(path):
    code = [cell["source"] for cell in cells(path, "code")]
    lines = sum(bool(line.strip()) and not line.startswith("#|") for source in code for line in source.splitlines())
    words = sum(len(cell["source"].split()) for cell in cells(path, "markdown"))
    assert words > lines, f"{words} words of prose for {lines} lines of code"
    hidden = sum("hide" in directives(source) for source in code)
    assert hidden <= len(code) / 4, f"{hidden} of {len(code)} cells are hidden"


def test_links_in_prose_lead_to_files():
    "The site shows the words of a link that leads nowhere, so nobody would notice there."
    gone = [
        f"{name(path)}: {target}"
        for path in NOTEBOOKS
        for cell in cells(path, "markdown")
        for target in re.findall(r"\]\(([^)\s#]+)", cell["source"])
        if not re.match(r"\w+:", target) and not (path.parent / target).exists()
    ]
    assert gone == []


# One way down


def package_of(path: Path) -> str:
    "The package in which a module's relative imports are meant."
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1])


def modules_imported(path: Path) -> set[Path]:
    "The modules of hrm that a module imports, wherever the import stands."
    found = {module_file(target, ROOT) for target in imported(path.read_text(encoding="utf-8"), package_of(path))}
    return found - {None, path}


def room(path: Path) -> str | None:
    "The folder of hrm in which a module stands."
    parts = path.relative_to(ROOT / "hrm").parts
    return parts[0] if len(parts) > 1 else None


def test_systems_stand_on_core_and_on_nothing_beside_them():
    assert {room(path) for path in MODULES} - {None} <= SYSTEMS | {"core", "tools"}
    below = {system: {"core", system} | ({"puzzles"} if system in ON_PUZZLES else set()) for system in SYSTEMS}
    below |= {"core": {"core"}, "tools": {"core", "tools", *SYSTEMS}, None: set()}
    assert [
        f"{name(path)} imports {name(other)}"
        for path in MODULES
        for other in sorted(modules_imported(path))
        if room(other) is not None and room(other) not in below[room(path)]
    ] == []


def test_no_circle_of_files():
    graph = {name(path): {name(other) for other in modules_imported(path)} for path in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        pytest.fail(" imports ".join(reversed(e.args[1])))


def notebook_of(path: Path) -> Path | None:
    "The notebook from which a module is made; None for one that is written by nbdev."
    source = re.search(
        r"^# AUTOGENERATED! DO NOT EDIT! File to edit: (\S+?\.ipynb)", path.read_text(encoding="utf-8"), re.M
    )
    return (path.parent / source[1]).resolve() if source else None


def number(notebook: Path) -> int:
    "The number at the head of a notebook's name."
    found = re.match(r"(\d\d)_", notebook.name)
    assert found, f"{name(notebook)}: the name begins with two digits"
    return int(found[1])


def test_each_number_once_in_a_folder():
    twice = Counter((name(path.parent), number(path)) for path in LIBRARY + CHAPTERS)
    assert [where for where, n in twice.items() if n > 1] == []


def test_notebooks_are_numbered_in_the_order_of_import():
    wrong = []
    for path in MODULES:
        here = notebook_of(path)
        for other in filter(None, map(notebook_of, modules_imported(path) if here else ())):
            if other.parent == here.parent and number(other) >= number(here):
                wrong.append(f"{name(here)} imports {name(other)}")
    assert sorted(wrong) == []


def test_chapters_export_nothing_and_import_no_tools():
    for path in CHAPTERS:
        assert exported(path) == [], name(path)
        for cell in cells(path, "code"):
            source = "\n".join(line for line in cell["source"].splitlines() if not line.lstrip().startswith(("%", "!")))
            assert not [t for t in imported(source, "") if t.startswith("hrm.tools")], name(path)
    assert all((path.parent / ".notest").exists() for path in CHAPTERS + GUIDES)


def test_guides_show_commands_and_no_code():
    "What they run is in cells that are not shown; what they print is."
    for path in GUIDES:
        code = [cell["source"] for cell in cells(path, "code")]
        assert code and all(source.startswith("#| echo: false") for source in code), name(path)
        assert any("console(" in source for source in code[1:]), name(path)


# The pipeline


def paths(entries: list) -> list[str]:
    "The paths of deps, outs, metrics or plots, without what is said about them."
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def test_one_name_all_the_way():
    stages = {stage: block for stage, block in pipeline().items() if stage != "code"}
    assert list(stages) == list(chapters()), "the stages stand in the order of their chapters"
    for stage, block in stages.items():
        where = "${item.run}" if "matrix" in block else None
        assert block["cmd"] == f"python -m hrm.tools.stage run {stage}" + (f" {where}" if where else "")
        outs = set(paths(block["outs"]))
        report = report_path(stage, where).relative_to(root()).as_posix()
        assert {report: {"cache": False}} in block["outs"], stage
        data = data_path(stage, where).relative_to(root()).as_posix() if where else None
        assert outs - {report, data} <= (
            set()
            if where
            else {f"reports/{one}" for one in ("figures.json", "claims.json", "family.json", "README.md")}
            | {"hrm/weights"}
        ), stage


def test_a_stage_depends_on_its_closure_its_data_and_its_parameters():
    blocks = pipeline()
    made = {out for block in blocks.values() for out in paths(block["outs"])} | {"reports/laptop", "reports/benchmarks"}
    made |= {"claims", "hrm/puzzle/rule_files"}  # what others said and the rules of puzzles, written by hand
    made |= {out.replace("${item.run}", "laptop") for out in made}  # for those that stand above the profiles
    for stage, block in blocks.items():
        deps = block["deps"]
        if stage == "code":
            rooms = {path.name for path in (root() / "hrm").iterdir() if (path / "__init__.py").is_file()}
            assert sorted(deps) == sorted(
                ["nbs/chapters", "hrm/__init__.py", *(f"hrm/{one}" for one in rooms - {"tools"})]
            )
            continue
        assert closure_file(stage).relative_to(root()).as_posix() in deps, stage
        assert [
            dep for dep in deps if not dep.startswith(("data/", "reports/", "claims/", "hrm/puzzle/rule_files"))
        ] == [], stage
        wanted = {f"profiles.{profile}.{where}" for profile in ("laptop", "${item.run}") for where in sections(stage)}
        assert set(block.get("params", [])) == wanted, stage
        assert [dep for dep in deps if not any(dep == out or dep.startswith(f"{out}/") for out in made)] == [], stage


def test_a_chapter_reads_only_reports_that_its_stage_depends_on():
    blocks, asked = pipeline(), re.compile(r'read_metrics\(profile, "(\w+)"(?:, "([\w.]+)")?\)')
    for stage, path in chapters().items():
        for other, file in asked.findall("\n".join(cell["source"] for cell in cells(path, "code"))):
            folder = f"reports/${{item.run}}/{other}"
            assert {folder, f"{folder}/{file or 'metrics.json'}"} & set(blocks[stage]["deps"]), (stage, other, file)


def test_metrics_and_plots_of_every_stage_are_listed():
    document = YAML(typ="safe", pure=True).load((root() / "dvc.yaml").read_text())
    listed = {
        name: props
        for entry in document["plots"]
        for name, props in (entry.items() if isinstance(entry, dict) else [(entry, None)])
    }
    curve = {"x": "step", "y": "loss", "title": "Training loss"}
    assert all(props == (curve if path.endswith(".csv") else None) for path, props in listed.items())
    stages = [stage for stage, block in document["stages"].items() if "matrix" in block]
    for profile in load_params()["run"]:
        for stage in stages:
            made = {path.name for path in report_path(stage, "laptop").glob("*") if path.suffix in (".png", ".csv")}
            head = f"reports/{profile}/{stage}/"
            assert {path.removeprefix(head) for path in listed if path.startswith(head)} == made, head
            measured = (report_path(stage, "laptop") / "metrics.json").is_file()
            assert (head + "metrics.json" in document["metrics"]) == measured, head


def test_chapters_take_the_profile_and_nothing_else():
    blocks = pipeline()
    for stage, path in chapters().items():
        tagged = [cell["source"] for cell in cells(path, "code") if "parameters" in cell["metadata"].get("tags", [])]
        if "matrix" not in blocks[stage]:
            assert tagged == [], name(path)
            continue
        assert len(tagged) == 1, name(path)
        statements = ast.parse(tagged[0]).body
        assert [ast.unparse(statement) for statement in statements] == ["profile = 'smoke'"], name(path)


@functools.cache
def commands_read() -> dict[str | None, str]:
    "The sections that commands read, and their models; under None the model of sections that a user names."
    found: dict[str | None, str] = {}
    for path in MODULES:
        if room(path) != "tools":
            continue
        module, tree = (
            ".".join(path.relative_to(ROOT).with_suffix("").parts),
            ast.parse(path.read_text(encoding="utf-8")),
        )
        origin = {node.name: module for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                base = (
                    importlib.util.resolve_name("." * node.level + (node.module or ""), package_of(path))
                    if node.level
                    else node.module
                )
                origin |= {alias.asname or alias.name: base for alias in node.names}
        for called, node in calls(tree):
            if called == "section" and len(node.args) == 3 and ast.unparse(node.args[2]) in origin:
                where = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
                found.setdefault(where, f"{origin[ast.unparse(node.args[2])]}:{ast.unparse(node.args[2])}")
    return found


@functools.cache
def chapters_read(project: Path) -> dict[str, str]:
    "The sections that a project's chapters read, and their models."
    return {where: model for stage in chapters() for where, model in sections(stage).items()}


def model(where: str) -> type:
    "The model that reads a section: a chapter's, else a command's, else that of the sections that a user names."
    read = chapters_read(root())
    module, _, found = (read.get(where) or commands_read().get(where) or commands_read()[None]).partition(":")
    return getattr(importlib.import_module(module), found)


def sections_of(profile: str) -> list[str]:
    "The sections that a profile holds."
    return [f"{system}.{verb}" for system, verbs in load_params()["profiles"][profile].items() for verb in verbs]


def test_every_section_of_every_profile_is_valid():
    read = set(chapters_read(root())) | set(commands_read()) - {None}
    assert read <= set(sections_of("laptop"))
    for profile in profiles():
        assert sorted(sections_of(profile)) == sorted(sections_of("laptop")), profile
        for where in sections_of(profile):
            section(profile, where, model(where))


NAMED = {  # section -> where names stand in it: `{}` the keys of a mapping, `[]` the items of a list, `*` the last key
    "sudoku.data": ("sets{}",),
    "sudoku.train": ("runs{}", "runs.*.set"),
    "maze.data": ("sets{}",),
    "maze.train": ("runs{}", "runs.*.set"),
    "maze.evaluate": ("run", "braided", "sets[]"),
    "dialogue.train": ("runs{}", "runs.*.set", "runs.*.after", "runs.*.weights"),
    "dialogue.ablate": (
        "base.set",
        "base.after",
        "base.weights",
        "variants{}",
        "variants.*.set",
        "options{}",
        "options.*.set",
        "options.*.after",
        "options.*.weights",
    ),
    "routing.data": ("sets{}",),
    "routing.train": ("runs{}", "runs.*.set", "base.set"),
    "routing.evaluate": ("lengths.*",),
    "routing.sweep": (
        "base.set",
        "shift.tests[]",
        "shift.change.set",
        "low_data.tests[]",
        "low_data.change.set",
        "document.set",
    ),
    "routing.queue": ("stage",),
    "routing.trouble": ("base.set", "long"),
    "text.train": ("runs{}", "runs.*.books[]"),
    "text.continual": ("order[]", "memories{}", "base.books[]"),
    "text.growth": ("base.books[]",),
    "text.evaluate": ("run",),
    "text.trouble": ("run", "leak"),
    "memory.train": ("runs{}", "runs.*.sets{}"),
    "memory.optim": ("base.sets{}", "optimizers{}"),
    "memory.titans": ("variants{}",),
    "checkpoints.train": ("runs{}",),
    "checkpoints.sweep": ("stage",),
    "checkpoints.evaluate": ("run",),
    "puzzle.train": ("kinds{}",),
}
WRONG = ("..", "../x", "a/b", "/abs", "", ".hidden", "a..b", "-x", "x\0", "x\n", "x" * 300)


def renamed(values: dict, place: str, new: str) -> tuple[dict, str]:
    "A section in which a name is another, and the key that the message has to name."
    values = node = copy.deepcopy(values)
    *parents, last = place.split(".")
    for key in parents:
        node = node[list(node)[-1] if key == "*" else key]
    if last.endswith("{}"):
        node = node[last[:-2]]
        node[new] = node.pop(list(node)[-1])
        return values, last[:-2]
    if last.endswith("[]"):
        node[last[:-2]] = [new]
        return values, f"{last[:-2]}.0"
    last = list(node)[-1] if last == "*" else last
    node[last] = new
    return values, str(last)


@pytest.fixture(scope="module")
def laptop() -> dict:
    "The sections of a profile."
    systems = load_params()["profiles"]["laptop"]
    return {f"{system}.{verb}": values for system, verbs in systems.items() for verb, values in verbs.items()}


@pytest.mark.parametrize("where, place", [(where, place) for where, places in NAMED.items() for place in places])
def test_a_name_cannot_leave_its_folder(where, place, laptop, tmp_path, monkeypatch):
    reader = model(where)
    (tmp_path / "params.yaml").write_text("profiles: {}\n")  # its lines are looked up at each error
    monkeypatch.setenv("HRM_ROOT", str(tmp_path))
    for wrong in WRONG:
        values, key = renamed(laptop[where], place, wrong)
        if key in ("after", "weights") and not wrong:  # no other run
            continue
        with pytest.raises(ConfigError) as error:
            validate(values, reader, ("profiles", "laptop", *where.split(".")))
        shown = json.dumps(wrong) if len(wrong) < 58 else json.dumps(wrong)[:57] + "..."
        head, _, found = str(error.value).partition(f"{key}: found {shown}; allowed: a name of letters, digits, _ . -")
        assert head.startswith("params.yaml") and where in head and found, error.value
    if key not in ("after", "weights"):  # these are names of runs that are there
        for fine in ("a.b-c_1", "aü", "9x9"):
            assert fine in validate(renamed(laptop[where], place, fine)[0], reader).model_dump_json()


@pytest.mark.parametrize("wrong", WRONG)
def test_a_profile_cannot_leave_its_folder(wrong, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(json.dumps({"profiles": {"aü.b-c_1": {"machine": {"benchmark": {}}}, wrong: {}}}, indent=1))
    with pytest.raises(ConfigError, match="params.yaml, line 8: profiles: found .*; allowed: a name of letters"):
        profiles(file)
    with pytest.raises(ConfigError, match="params.yaml, line 8: profiles: found .*; allowed: a name of letters"):
        section("aü.b-c_1", "machine.benchmark", model("machine.benchmark"), file)
    file.write_text(json.dumps({"profiles": {"aü.b-c_1": {}}}))
    assert profiles(file) == ["aü.b-c_1"]


def test_a_plain_repro_runs_smoke_and_laptop_without_tracking():
    params = load_params()
    assert (params["run"], params["runner"], params["tracking"]) == (["smoke", "laptop"], "host", "disabled")
    assert set(params["profiles"]) == {"smoke", "laptop", "gpu"}


# The package's own settings


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_settings_ini_agrees():
    import hrm

    reader = configparser.ConfigParser()
    reader.read(ROOT / "settings.ini")
    ini, pyproject = reader["DEFAULT"], project()
    package, nbdev = pyproject["project"], pyproject["tool"]["nbdev"]
    assert (ini["lib_name"], ini["description"], ini["version"]) == (
        package["name"],
        package["description"],
        hrm.__version__,
    )
    assert f">={ini['min_python']}" == package["requires-python"]
    assert ini["keywords"].split() == package["keywords"]
    assert ini["author"] == package["authors"][0]["name"]
    assert ini["requirements"].split() == package["dependencies"]
    assert ini["dev_requirements"].split() == package["optional-dependencies"]["dev"]
    assert ini["console_scripts"] == "".join(f"{k}={v}" for k, v in package["scripts"].items())
    for key in ("nbs_path", "lib_path", "doc_path", "tst_flags"):
        assert ini[key] == nbdev[key], key
    for key in ("allowed_cell_metadata_keys", "allowed_out_metadata_keys"):
        assert ini[key].split() == nbdev[key], key
    assert ini["update_pyproject"] == str(nbdev["update_pyproject"])


def test_the_lock_pins_everything_the_package_asks_for():
    def plain(text):
        return re.match(r"[\w.-]+", text)[0].lower().replace("_", "-").replace(".", "-")

    lines = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==\S+( ; .+)?", line)] == []
    assert "torch==2.13.0" in lines
    package = project()["project"]
    asked = package["dependencies"] + sum(package["optional-dependencies"].values(), [])
    assert {plain(one) for one in asked} - {plain(line) for line in lines} == set()


def test_importing_the_package_loads_no_compiler():
    "What takes seconds to import is imported where it is used: each stage starts from nothing."
    modules = [name(path)[:-3].replace("/", ".") for path in sorted((ROOT / "hrm").rglob("*.py"))]
    modules = [one for one in modules if not one.startswith("hrm.tools") and not one.endswith(("__init__", "_modidx"))]
    late = ("torch._dynamo", "torch._inductor", "scipy.stats", "wandb", "dvc", "papermill", "nbdev")
    code = f"import sys, {', '.join(modules)}; print([one for one in {late} if one in sys.modules])"
    assert len(modules) > 60
    assert shell(sys.executable, "-c", code, cwd=ROOT).stdout.strip() == "[]"


def test_make_help_has_one_line_for_each_word():
    words = re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    helped = shell("make", "--no-print-directory", "help", cwd=ROOT).stdout.splitlines()
    assert [line.split()[1] for line in helped] == words
    assert {"repro", "smoke", "test", "lab", "docs", "docs-serve", "clean"} <= set(words)


# What may not stand anywhere

WORDS = re.compile(
    "|".join(
        (
            "/wo" + "rk/",
            "/fa" + "rm/",
            "/opt/" + "wheels",
            "/ho" + "me/",
            "/ro" + "ot/",
            r"pypi\." + "org",
            "files.python" + "hosted",
            "registry." + "npmjs",
            "deb." + "debian.org",
            r"\bTO" + r"DO\b",
            r"\bFIX" + r"ME\b",
            r"\bXX" + r"X\b",
        )
    )
)


def test_no_machine_paths_registry_hosts_or_to_do_marks():
    found = []
    for path in tracked():
        if path.suffix in (".lock", ".png", ".safetensors", ".npy", ".ico", ".woff2"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".ipynb":  # a picture's base64 may spell anything
            text = re.sub(r'"image/png": "[^"]*"', "", text)
        found += [f"{name(path)}: {line.strip()[:100]}" for line in text.splitlines() if WORDS.search(line)]
    assert found == []


def test_line_ends_are_those_of_unix():
    tracked()  # skips without git
    listing = subprocess.run(
        ["git", "ls-files", "--eol"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [
        line
        for line in listing
        if re.search(r"[iw]/(crlf|mixed)", line)
        or "attr/" in line
        and not re.search(r"attr/(-text|text=auto eol=lf)", line)
    ] == []


def test_no_large_files():
    others = [path for path in tracked() if not path.is_relative_to(ROOT / "hrm" / "weights")]  # those: 4 MB in all
    assert [name(path) for path in others if path.stat().st_size > 2_000_000] == []


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    "Every call with the text of what is called."
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nothing_runs_what_a_file_says(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    loaded = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    loaded |= {
        (node.module or "").split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert not loaded & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for called, node in calls(tree):
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert called not in ("eval", "exec", "os.system", "os.popen"), f"line {node.lineno}: {called}"
        assert options.get("shell", "False") == "False", f"line {node.lineno}: shell"
        assert options.get("allow_pickle", "False") == "False", f"line {node.lineno}: allow_pickle"
        if called == "torch.load":
            assert options.get("weights_only") == "True", f"line {node.lineno}: torch.load without weights_only=True"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_stubs(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert "NotImplementedError" not in ast.unparse(node.exc), f"line {node.lineno}"
        assert not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...), (
            f"line {node.lineno}"
        )


def test_public_functions_have_a_docstring():
    bare = []
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                bare.append(f"{name(path)}: {node.name}")
    assert bare == []
