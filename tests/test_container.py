"""The container: what is asked of the engine and what is found missing before it; then a real image on a base made here,
with stages in it that are compared, failed, stopped and killed. The second half needs root, podman, runc and mmdebstrap."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from copies import BIN, ROOT, copy_project, environment, shell
from hrm.core.config import ConfigError
from hrm.machine import container
from hrm.tools import stage
from ruamel.yaml import YAML

sys.path.insert(0, str(ROOT / "benchmarks"))
bench = importlib.import_module("container")


# Files that other programs read


def test_dockerfile_is_clean():
    done = subprocess.run(
        [BIN / "hadolint", "--no-color", ROOT / "docker" / "Dockerfile"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_say_so(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp && sudo true\n")
    done = subprocess.run([BIN / "hadolint", "--no-color", tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode and "DL3004" in done.stdout


def schema(path: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path], capture_output=True, text=True
    )


def test_compose_file_fits_the_specification(tmp_path):
    compose = ROOT / "docker" / "compose.yaml"
    assert schema(compose).returncode == 0, schema(compose).stdout
    (tmp_path / "compose.yaml").write_text(compose.read_text().replace("init: true", "inti: true"))
    assert schema(tmp_path / "compose.yaml").returncode == 1


def test_compose_and_runner_ask_for_the_same():
    service = YAML(typ="safe").load((ROOT / "docker" / "compose.yaml").read_text())["services"]["hrm"]
    line = container.container_line(
        container.Wish("docker", gpu_args=("--gpus", "all"), run_args=tuple(container.RUN_ARGS)), [], Path("/p"), (1, 2)
    )
    assert service["init"] and "--init" in line and service["ipc"] == "host" and "--ipc=host" in line
    assert {f"{name}={value}" for name, value in service["ulimits"].items()} == {
        word for before, word in zip(line, line[1:]) if before == "--ulimit"
    }
    assert service["volumes"] == [f"..:{container.PLACE}"] and f"type=bind,source=/p,target={container.PLACE}" in line
    assert (
        service["environment"].items()
        <= dict(word.split("=", 1) for before, word in zip(line, line[1:]) if before == "--env" and "=" in word).items()
    )
    assert service["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    ]
    text = (ROOT / "docker" / "Dockerfile").read_text()
    assert (
        f"ARG BASE_IMAGE={service['build']['args']['BASE_IMAGE'].removeprefix('${BASE_IMAGE:-').removesuffix('}')}\n"
        in text
    )


def test_the_lines_of_the_compose_file_can_be_typed(tmp_path):
    "In bash, where UID is read-only: every line of the header runs, and compose is told who calls."
    file = ROOT / "docker" / "compose.yaml"
    lines = [line[4:] for line in file.read_text().splitlines() if line.startswith("#   ")]
    guide = "".join(
        "".join(cell["source"])
        for cell in json.loads((ROOT / "nbs/chapters/31_machine_guide.ipynb").read_text())["cells"]
    )
    asked = YAML(typ="safe").load(file.read_text())["services"]["hrm"]["user"]
    assert asked == "${HRM_UID:-1000}:${HRM_GID:-1000}" and lines[0] in guide
    client = tmp_path / "docker"
    client.write_text(f'#!/bin/sh\necho "{asked}"\n')
    client.chmod(0o755)
    done = subprocess.run(
        ["bash", "-ec", "\n".join(lines)],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.stderr == "" and done.stdout.split() == [f"{os.getuid()}:{os.getgid()}"] * (len(lines) - 1)


# What is asked for, and what is missing


@pytest.fixture
def settings(monkeypatch):
    "Set variables of the runner; without any, none is set."
    for name in ("HRM_RUNNER", "HRM_IMAGE", "HRM_GPU_ARGS", "HRM_RUN_ARGS"):
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


def test_environment_goes_before_params(settings, tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("runner: podman\nprofiles: {}\n")
    monkeypatch.setenv("HRM_ROOT", str(tmp_path))
    assert container.runner() == "podman"
    settings(HRM_RUNNER="host")
    assert container.runner() == "host"
    settings(HRM_RUNNER="Docker")
    with pytest.raises(ConfigError, match="HRM_RUNNER: found 'Docker'; allowed: host, docker, podman"):
        container.runner()
    (tmp_path / "params.yaml").write_text("runner: boat\nprofiles: {}\n")
    monkeypatch.delenv("HRM_RUNNER")
    with pytest.raises(ConfigError, match='params.yaml, line 1: runner: found "boat"; allowed: host, docker, podman'):
        container.runner()


def test_no_secret_stands_in_the_line(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "abc123")
    line = container.container_line(container.Wish("docker"), ["python"], Path("/p"), (1000, 1000))
    assert "WANDB_API_KEY" in line and not any("abc123" in word for word in line)


def environment_of(line: list[str]) -> list[str]:
    return [word for before, word in zip(line, line[1:]) if before == "--env"]


def test_the_hosts_caches_stay_on_the_host(monkeypatch):
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TORCH_HOME", "WANDB_CACHE_DIR", "TORCH_LOGS", "WANDB_DIR"):
        monkeypatch.setenv(name, "x")
    passed = environment_of(container.container_line(container.Wish("docker"), ["python"], Path("/p"), (1, 1)))
    assert {"TORCH_LOGS", "WANDB_DIR"} <= set(passed) and not {
        "TORCHINDUCTOR_CACHE_DIR",
        "TORCH_HOME",
        "WANDB_CACHE_DIR",
    } & set(passed)


def test_float32_products_are_those_of_the_host(monkeypatch):
    "NVIDIA's image sets this to 1: the container's line and a stage's environment set it back."
    name = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
    monkeypatch.delenv(name, raising=False)
    line = lambda: environment_of(container.container_line(container.Wish("docker"), ["python"], Path("/p"), (1, 1)))
    assert f"{name}=0" in line() and stage.environment()[name] == "0"
    monkeypatch.setenv(name, "1")  # the user's own word, for programs that are no stages
    assert name in line() and f"{name}=0" not in line() and stage.environment()[name] == "0"


@pytest.mark.parametrize(
    "size, gib",
    [
        ("1g", 1),
        ("512m", 0.5),
        ("1GiB", 1),
        ("1t", 1024),
        ("2048kb", 2 / 1024),
        ("67108864", 1 / 16),
        ("64b", 64 / 2**30),
        ("1.5 g", 1.5),
    ],
)
def test_shared_memory_is_read_as_engines_do(size, gib):
    assert container.shared_memory(container.Host(container.Wish("docker", run_args=("--shm-size", size)))) == gib


@pytest.mark.parametrize("size", ["much", "1x", "", "g", "-1g"])
def test_a_size_that_is_none_names_the_variable(size):
    with pytest.raises(ConfigError, match=f"HRM_RUN_ARGS: found --shm-size={size}; allowed: a size such as 512m"):
        container.shared_memory(container.Host(container.Wish("docker", run_args=(f"--shm-size={size}",))))


def test_no_image_is_advised_that_the_project_cannot_use():
    host = container.Host(
        container.Wish("docker", gpu_args=("--gpus", "all")),
        answer="28",
        image=True,
        image_cuda="13.0",
        gpu=True,
        driver="570.86",
        handed_over=True,
    )
    driver = next(f for f in container.judge_passthrough(host) if f.state == "error")
    assert "580 or later" in driver.hint and "--base" not in driver.hint


@pytest.mark.parametrize("code, left", [(0, True), (3, False)])
def test_a_trial_in_the_container_leaves_its_metrics(code, left, settings, tmp_path, monkeypatch):
    "The container sees the workspace alone; whoever waited for it copies what came out."
    work, trial = tmp_path / "work", tmp_path / "trials" / "t"
    for folder in (work / "nbs" / "chapters", work / "reports" / "smoke" / "environment", trial):
        folder.mkdir(parents=True)
    shutil.copy(stage.chapter("environment"), work / "nbs" / "chapters")
    shutil.copy(ROOT / "params.yaml", work)
    (work / "reports/smoke/environment/metrics.json").write_text('{"a": 1}')
    (trial / "trial.json").write_text('{"stage": "environment", "profile": "smoke", "values": {}}')
    settings(HRM_RUNNER="docker", HRM_ROOT=str(work), HRM_TRIAL=str(trial))
    monkeypatch.setattr(stage, "run_in_container", lambda words, engine: code)
    assert stage.run("environment", "smoke") == code
    assert (trial / "metrics.json").exists() == left


def test_runner_is_in_no_stage_and_no_fingerprint():
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    assert not [stage for stage, block in stages.items() if "runner" in json.dumps(block.get("params", []))]
    assert not [
        path
        for path in (ROOT / "hrm" / "core").glob("*.py")
        if "HRM_RUNNER" in path.read_text() and path.name != "preflight.py"
    ]


def test_a_client_without_an_engine_is_no_engine(settings, tmp_path, monkeypatch):
    client = tmp_path / "docker"
    client.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no engine answers: Cannot connect to the Docker daemon. Start it"):
        container.run_in_container(["true"], "docker")


def test_a_stage_is_refused_before_anything_starts(settings, tmp_path):
    done = shell(
        sys.executable,
        "-m",
        "hrm.tools.stage",
        "run",
        "environment",
        "smoke",
        cwd=ROOT,
        ok=False,
        HRM_RUNNER="podman",
        PATH=str(tmp_path),
    )
    assert (
        done.returncode == 2
        and done.stderr == "error: runner podman: podman is not installed. Install podman, or set HRM_RUNNER to host.\n"
    )


def test_a_kept_base_is_used_until_it_is_made_of_something_else(tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    monkeypatch.setenv("HRM_WORKSHOP", str(folder))
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: None)  # no podman is needed
    made = []

    class Made(bench.Workshop):
        def base(self):
            made.append("base")

        def image(self):
            made.append("image")

    monkeypatch.setattr(bench, "check", lambda: None)
    monkeypatch.setattr(bench, "Workshop", Made)
    for sources, expected in (
        ("mirror", ["base", "image"]),
        ("mirror", ["image"]),
        ("another mirror", ["base", "image"]),
    ):
        monkeypatch.setattr(bench, "sources", lambda: (sources, "release", "main"))
        with bench.workshop() as shop:
            assert shop.folder == folder and made == expected
        made.clear()
        assert (folder / "ingredients").read_text() == bench.ingredients()
    with monkeypatch.context() as patch:
        patch.setattr(bench.Lock, "take", lambda *_: (_ for _ in ()).throw(ConfigError("in use")))
        with bench.workshop() as shop:
            assert shop.folder != folder and made == ["base", "image"]
        assert not shop.folder.exists() and folder.exists()
    monkeypatch.setenv("HRM_WORKSHOP", "")
    with bench.workshop() as shop:
        assert shop.folder != folder
    assert not shop.folder.exists() and folder.exists()


def test_a_folder_of_something_else_is_no_workshop(tmp_path, monkeypatch):
    (tmp_path / "letter").write_text("mine")
    monkeypatch.setenv("HRM_WORKSHOP", str(tmp_path))
    with pytest.raises(ConfigError, match="a folder of something else"):
        bench.shelf()
    assert (tmp_path / "letter").read_text() == "mine"


# A real one


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    "The images, made once; skips with the reason where they cannot be made."
    try:
        with bench.workshop() as made:
            yield made
    except bench.Missing as why:
        pytest.skip(f"no container here: {why}")


@pytest.fixture(scope="module")
def variables(shop) -> dict[str, str]:
    "What a stage in the container needs in its environment."
    return shop.variables | bench.SETTINGS | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def twins(tmp_path_factory, shop) -> tuple[Path, Path]:
    "Two copies of the project: the stages of one ran in the container, those of the other on the host, both under DVC, at the same time."
    copies = [copy_project(tmp_path_factory.mktemp(name) / name) for name in ("inside", "outside")]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(bench.stages, copies, (shop, None)))
    return tuple(copies)


@pytest.mark.container
def test_the_vendors_torch_is_what_it_was(shop):
    said = shop.inside(
        "python",
        "-c",
        "import torch, importlib.metadata as m; print(torch.__version__, m.version('torch'), torch.__file__)",
    )
    version, metadata, file = said.split()
    locked = next(line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.startswith("torch=="))
    assert (version, metadata) == (bench.SPOKEN, bench.VENDOR) and metadata != locked.removeprefix("torch==")
    assert file.startswith("/usr/local/lib/")
    listing = (
        "sh",
        "-c",
        "find /usr/local/lib/python3* -type f ! -name '*.pyc' -exec md5sum {} + | sort -k 2 | md5sum",
    )
    assert shop.inside(*listing) == shop.inside(*listing, image=bench.BASE), "something of the vendor's was replaced"


@pytest.mark.container
def test_the_lock_is_installed_beside_it(shop):
    program = (
        "import importlib.metadata as m, json, re; from packaging.requirements import Requirement as R; "
        "rows = [R(l) for l in open('/opt/hrm/rest.lock').read().split('\\n') if l]; "
        "print(json.dumps([r.name for r in rows if (r.marker is None or r.marker.evaluate()) and not r.specifier.contains(m.version(r.name), prereleases=True)]))"
    )
    assert json.loads(shop.inside("python", "-c", program)) == []
    names = "import filelock, hrm, os; print(filelock.__file__.split('/lib/')[0], os.path.dirname(hrm.__file__))"
    assert shop.inside("python", "-c", names).split() == [
        "/opt/hrm",
        "/workspace/hrm/hrm",
    ]  # the vendor has another filelock


@pytest.mark.container
def test_pip_may_not_replace_it(shop):
    line = (
        "run",
        "--rm",
        "--user",
        "0",
        "-v",
        f"{shop.wheels}:/wheels:ro",
        bench.IMAGE,
        "python",
        "-m",
        "pip",
        "install",
        "--no-index",
        "--find-links=/wheels",
        "--no-deps",
        "torch==2.13.0",
    )
    done = subprocess.run(["podman", *line], env=os.environ | shop.variables, capture_output=True, text=True)
    assert done.returncode and bench.VENDOR in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.mark.container
def test_entry_point_and_any_user(shop):
    done = subprocess.run(
        [
            "podman",
            "run",
            "--rm",
            "--user",
            "4321:99",
            bench.IMAGE,
            "sh",
            "-c",
            "echo $HOME; touch $HOME/.cache/x $HOME/y && hrm --help",
        ],
        env=os.environ | shop.variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "entry point of the vendor" in done.stderr
    assert done.stdout.splitlines()[0] == "/workspace/user" and "Usage: hrm" in done.stdout
    assert shop.inside("id", "-u") == "1000"


@pytest.mark.container
def test_metrics_are_those_of_the_host(twins):
    inside, outside = twins
    assert bench.compare(inside, outside) == dict.fromkeys(bench.STAGES, True)
    there, here = (json.loads(bench.read(project, "environment"))["machine"] for project in (inside, outside))
    assert there["torch"] == bench.SPOKEN and here["torch"] != there["torch"], "it ran where it should"
    for project in (inside, outside):
        executed = json.loads((project / "reports/smoke/sudoku_train/sudoku_train.ipynb").read_text())
        assert str(project) not in json.dumps(executed) and container.PLACE not in json.dumps(executed)


@pytest.mark.container
def test_another_runner_runs_nothing_again(twins):
    printed = shell(sys.executable, "-m", "dvc", "repro", "sudoku_train@smoke", cwd=twins[0], HRM_RUNNER="host").stdout
    assert "Running stage" not in printed


@pytest.mark.container
def test_files_belong_to_the_caller(tmp_path, variables):
    project = copy_project(tmp_path / "project")
    shell("chown", "-R", "1234:1234", project, cwd=tmp_path)
    shell(
        sys.executable,
        "-m",
        "hrm.tools.stage",
        "run",
        "environment",
        "smoke",
        cwd=project,
        **variables | {"HRM_RUN_ARGS": f"{variables['HRM_RUN_ARGS']} --user 1234:1234"},
    )
    written = [path for path in project.rglob("*") if "reports/smoke" in path.as_posix()]
    assert len(written) >= 4 and {(path.stat().st_uid, path.stat().st_gid) for path in written} == {(1234, 1234)}


# Failing, stopping, killing

CHAPTER = """
import os, time
from pathlib import Path
Path("kernel.pid").write_text(str(os.getpid()))
try:
    for step in range(600):
        time.sleep(0.1)
except KeyboardInterrupt:
    Path("saved").write_text(str(step))
    raise
"""


@pytest.fixture
def project(tmp_path) -> Path:
    "A project of two chapters: one works for a minute and saves when it is interrupted, one fails."
    for name, source in (("01_long", CHAPTER), ("02_failing", "raise RuntimeError('as it should')")):
        cells = [
            {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# A chapter"},
            *(
                {
                    "cell_type": "code",
                    "id": id,
                    "metadata": {"tags": tags},
                    "source": text,
                    "outputs": [],
                    "execution_count": None,
                }
                for id, tags, text in (
                    ("b", ["parameters"], 'profile = "smoke"'),
                    ("c", [], source),
                    ("d", [], 'Path("later").touch()'),
                )
            ),
        ]
        kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
        path = tmp_path / "nbs" / "chapters" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    shutil.copytree(ROOT / "hrm", tmp_path / "hrm", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "params.yaml").write_text("run: [smoke]\nprofiles: {smoke: {}}\n")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        + "".join(
            f"  {name}:\n    cmd: python -m hrm.tools.stage run {name} smoke; exit $?\n    outs:\n    - reports/smoke/{name}/{name}.ipynb: {{cache: false}}\n"
            for name in ("long", "failing")
        )
    )
    return tmp_path


def wait_for(reached, seconds: float, told: str) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, told
        time.sleep(0.2)


def clients(parent: psutil.Process) -> list[psutil.Process]:
    "The engine's clients among a process's descendants."
    return [
        child
        for child in parent.children(recursive=True)
        if "run" in child.cmdline()[:2] and "podman" in child.cmdline()[0]
    ]


@pytest.mark.container
def test_exit_codes_come_through(project, variables, shop, monkeypatch):
    done = shell(sys.executable, "-m", "hrm.tools.stage", "run", "failing", "smoke", cwd=project, ok=False, **variables)
    assert (
        done.returncode == 1
        and "as it should" in done.stderr
        and (project / "data/.partial/smoke/failing/failing.ipynb").exists()
    )
    done = shell(BIN / "hrm", "container", "run", "sh", "-c", "exit 75", cwd=project, ok=False, **variables)
    assert done.returncode == 75
    done = subprocess.run(
        [BIN / "hrm", "container", "run", "cat"],
        cwd=project,
        env=environment(**variables),
        input="a word",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "a word")
    shell(sys.executable, "-m", "dvc", "init", "--no-scm", "-q", cwd=project)
    done = shell(sys.executable, "-m", "dvc", "repro", "failing", cwd=project, ok=False, **variables)
    assert done.returncode and "exited with 1" in done.stdout + done.stderr
    assert shop.containers() == []


@pytest.mark.container
@pytest.mark.parametrize(
    "victim, number",
    [
        ("stage", signal.SIGTERM),
        ("stage", signal.SIGINT),
        ("stage", signal.SIGKILL),
        ("client", signal.SIGKILL),
        ("dvc", signal.SIGKILL),
        ("everything", signal.SIGKILL),
    ],
)
def test_whoever_ends_the_chapter_saves_and_no_container_is_left(project, variables, shop, victim, number):
    line = (sys.executable, "-m", "hrm.tools.stage", "run", "long", "smoke")
    if victim in ("dvc", "everything"):
        shell(sys.executable, "-m", "dvc", "init", "--no-scm", "-q", cwd=project)
        line = (sys.executable, "-m", "dvc", "repro", "long")
    with open(project / "log", "w") as log:
        process = subprocess.Popen(
            line, cwd=project, env=environment(**variables), stdout=log, stderr=log, start_new_session=True
        )
    told = lambda: (project / "log").read_text()
    wait_for(lambda: (project / "kernel.pid").exists() and (project / "kernel.pid").read_text(), 90, told())
    time.sleep(0.5)
    family = psutil.Process(process.pid)
    victims = {"client": clients(family), "everything": [family, *family.children(recursive=True)]}.get(
        victim, [family]
    )
    assert victims, told()
    for one in victims:
        one.send_signal(number)
    code = process.wait(60)
    wait_for(lambda: shop.containers() == [], 30, told())
    assert (project / "saved").exists() and not (project / "later").exists() and not (project / "reports").exists(), (
        told()
    )
    if number in (signal.SIGTERM, signal.SIGINT):
        assert code == 128 + number


@pytest.mark.container
def test_a_container_left_alone_is_stopped_first(project, variables, shop):
    name = container.container_name(project.resolve(), ["python", "-m", "hrm.tools.stage", "run", "failing", "smoke"])
    shop.podman("run", "--detach", "--init", "--name", name, bench.IMAGE, "sleep", "600")
    done = shell(sys.executable, "-m", "hrm.tools.stage", "run", "failing", "smoke", cwd=project, ok=False, **variables)
    assert done.returncode == 1 and "it is stopped first" in done.stderr and shop.containers() == []


# Training


@pytest.fixture(scope="module")
def longer(twins) -> Path:
    "The host's copy again, with a training that takes some seconds and saves at every step, finished on the host."
    params, outside = YAML(), twins[1]
    document = params.load((outside / "params.yaml").read_text())
    runs = document["profiles"]["smoke"]["sudoku"]["train"]["runs"]
    runs["4x4"]["loop"] = {
        "steps": 40,
        "evaluate_every": 20,
        "log_every": 10,
        "compile": "off",
        "checkpoint_seconds": 0.0,
    }
    with open(outside / "params.yaml", "w") as file:
        params.dump(document, file)
    line = (BIN / "hrm", "train", "--profile", "smoke", "--run", "4x4")
    shell(*line, "--out", "alone", "--resume", "other_resume", cwd=outside, OMP_NUM_THREADS="1")
    return outside


@pytest.mark.container
def test_a_stopped_training_resumes_in_the_container_and_ends_like_the_hosts(longer, variables, shop):
    line = [BIN / "hrm", "container", "run", "hrm", "train", "--profile", "smoke", "--run", "4x4", "--out", "stopped"]
    states = lambda: set((longer / "data/resume").glob("*/latest/*.pt"))
    kept = states()  # of runs that others go on from
    process = subprocess.Popen(
        line, cwd=longer, env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: states() - kept, 60, "no state was saved")
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert shop.containers() == [] and not (longer / "stopped" / "4x4").exists()
    assert states() - kept and {path.stat().st_uid for path in states() - kept} == {os.getuid()}
    again = shell(*line, cwd=longer, **variables)
    assert "4x4: 40 steps" in again.stdout
    for name in ("final/model.safetensors", "best/model.safetensors"):
        assert (longer / "stopped/4x4" / name).read_bytes() == (longer / "alone/4x4" / name).read_bytes(), name


@pytest.mark.container
def test_torchrun_with_two_processes_in_the_container(longer, variables):
    line = (
        BIN / "hrm",
        "container",
        "run",
        "python",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "--",
        "hrm.tools.cli",
        "train",
        "--profile",
        "smoke",
        "--run",
        "4x4",
        "--out",
        "pair",
        "--resume",
        "pair_resume",
    )
    done = shell(*line, cwd=longer, **variables)
    assert done.stdout.count("4x4: 40 steps") == 1, done.stdout
    pair, alone = (
        json.loads((longer / folder / "4x4" / "final" / "meta.json").read_text()) for folder in ("pair", "alone")
    )
    assert pair["step"] == alone["step"] == 40
