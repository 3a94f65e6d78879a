"Sweeps: the description, the file for W&B, the agent, DVC's queue in a clean copy, and the table."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from copies import ROOT, commit, copy_project, environment, shell
from hypothesis import given, settings, strategies as st
from ruamel.yaml import YAML

from hrm.core.config import EXCHANGED, REMOVE, ConfigError, load_params, merged, section, validate
from hrm.tools import sweep as sweeps
import tiny
from hrm.tools.lock import put_back
from hrm.tools.stage import main as stage_main
from hrm.tools.sweep import (
    SweepConfig,
    check,
    draw_trials,
    exchanged,
    ground,
    parse_values,
    plain_yaml,
    results,
    stage_section,
    sweep_file,
    unshared,
    with_values,
)

TRAIN = dict(
    stage="checkpoints_train",
    method="random",
    trials=5,
    seed=1,
    metric="v9.held_out.loss",
    logged="held_out.loss",
    goal="minimize",
    over={
        "runs.v9.optim.lr": {"low": 1e-4, "high": 1e-2, "scale": "log"},
        "runs.v9.loop.log_every": {"low": 1, "high": 8},
        "runs.v9.cross_entropy": ["stablemax", "softmax"],
        "runs.v9.optim.clip": [None, 1.0],
        "runs.v9.optim.betas": [[0.9, 0.95], [0.9, 0.999]],
        "runs.v9.loop.keep_optimizer": [True, False],
    },
)
CLI = (sys.executable, "-m", "hrm.tools.cli", "sweep")


def config(**changes) -> SweepConfig:
    return validate(TRAIN | changes, SweepConfig)


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("HRM_ROOT", "HRM_TRIAL", "HRM_RUNNER", "WANDB_SWEEP_ID", "DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)


# Trials


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_random_trials_are_seeded_different_and_in_range(seed):
    simple = {key: value for key, value in TRAIN["over"].items() if key not in ("runs.v9.optim.clip",)}
    trials = draw_trials(config(seed=seed, over=simple))
    assert trials == draw_trials(config(seed=seed, over=simple))
    assert len(trials) == 5 == len({json.dumps(one) for one in trials})
    for one in trials:
        assert (
            1e-4 <= one["runs.v9.optim.lr"] <= 1e-2
            and float(f"{one['runs.v9.optim.lr']:.6g}") == one["runs.v9.optim.lr"]
        )
        assert type(one["runs.v9.loop.log_every"]) is int and 1 <= one["runs.v9.loop.log_every"] <= 8


def test_a_log_range_is_drawn_evenly_in_its_logarithm():
    drawn = [
        one["x"] for one in draw_trials(config(trials=2000, over={"x": {"low": 1e-4, "high": 1e-2, "scale": "log"}}))
    ]
    assert abs(sum(value < 1e-3 for value in drawn) / len(drawn) - 0.5) < 0.04
    whole = [one["n"] for one in draw_trials(config(trials=99, over={"n": {"low": 1, "high": 64, "scale": "log"}}))]
    assert set(whole) <= set(range(1, 65)) and len(whole) == len(set(whole))


def test_a_grid_is_every_combination_in_order():
    grid = config(method="grid", trials=6, over={"runs.v9.batch_size": [1, 2, 3], "runs.v9.optim.lr": [0.1, 0.2]})
    assert [tuple(one.values()) for one in draw_trials(grid)] == [
        (1, 0.1),
        (1, 0.2),
        (2, 0.1),
        (2, 0.2),
        (3, 0.1),
        (3, 0.2),
    ]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"method": "bayes"}, "'grid' or 'random'"),
        ({"over": {}}, "at least 1"),
        ({"over": {"a": []}}, "a: no values"),
        ({"over": {"a": {"low": 2, "high": 1}}}, "low < high"),
        ({"over": {"a": {"low": 0, "high": 1, "scale": "log"}}}, "0 < low on a log scale"),
        ({"over": {"a": {"low": 1, "high": 2, "step": 1}}}, "unknown key"),
        ({"method": "grid"}, "a range; allowed in a grid"),
        ({"method": "grid", "over": {"a": [1, 2, 3], "b": [1, 2]}}, "a grid of 6; allowed by trials: 5"),
        ({"goal": "best"}, "'minimize' or 'maximize'"),
    ],
)
def test_wrong_sweeps_are_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        config(**change)


# Values


@pytest.mark.parametrize(
    "stage, values, said",
    [
        (
            "checkpoints_train",
            {"runs.v9.optim.rate": 1},
            "profiles.smoke.checkpoints.train.runs.v9.optim.rate: unknown key; allowed: name, lr",
        ),
        (
            "checkpoints_train",
            {"runs.v8.batch_size": 1},
            "found no 'v8' with keys of its own in profiles.smoke.checkpoints.train.runs; allowed: v9",
        ),
        (
            "checkpoints_train",
            {"seed.more": 1},
            "found no 'seed' with keys of its own in profiles.smoke.checkpoints.train; allowed: runs",
        ),
        ("checkpoints_train", {"runs.v9.batch_size": 0}, "batch_size: found 0; allowed: greater than 0"),
        ("checkpoints_train", {"runs.v9.batch_size": "two"}, 'batch_size: found "two"; allowed: a valid integer'),
        ("checkpoints_train", {"runs.v9.arch.num_heads": 3}, "hidden_size 32 is not a multiple of num_heads 3"),
        ("checkpoint_train", {"seed": 1}, "no chapter for stage 'checkpoint_train'"),
        ("environment", {"seed": 1}, "reads no section environment"),
    ],
)
def test_wrong_keys_and_values_are_named(stage, values, said):
    with pytest.raises(ConfigError, match=said):
        with_values(ground("smoke", stage), values)


def test_every_value_of_a_sweep_is_tried_before_any_work(monkeypatch):
    monkeypatch.setattr(sweeps, "_dvc", lambda *words, **_: pytest.fail("work was started"))
    for over in ({"runs.v9.batch_size": [1, 2, 0]}, {"runs.v9.optim.ema": {"low": 0.5, "high": 1.5}}):
        with pytest.raises(ConfigError, match="batch_size: found 0|ema: found 1.5"):
            sweeps.queue_trials(config(over=over), "smoke")
    with pytest.raises(ConfigError, match="no profile 'tiny'"):
        check(config(over={"seed": [1]}), "tiny")


def test_an_alias_changes_in_one_place_only():
    before = unshared(load_params())
    for profile, stage, key in (
        ("laptop", "sudoku_train", "runs.easy9.optim.lr"),
        ("smoke", "checkpoints_train", "runs.v9.optim.lr"),
    ):
        after = with_values(ground(profile, stage), {key: 0.125})
        system, verb = stage.split("_")
        node = after["profiles"][profile][system][verb]
        *parts, last = key.split(".")
        for part in parts:
            node = node[part]
        assert node[last] == 0.125
        node[last] = before["profiles"][profile][system][verb]["runs"][parts[1]]["optim"]["lr"]
        assert after == before
        assert YAML(typ="safe").load(plain_yaml(after)) == before


def test_a_trial_of_an_overlay_changes_what_differs():
    before = load_params()
    for profile, stage, values in [
        (
            "smoke",
            "checkpoints_train",
            {"runs.v9.optim.warmup": 3, "runs.v9.loop.keep_every": 7, "runs.v9.optim.betas": [0.5, 0.5]},
        ),
        ("gpu", "dialogue_data", {"seed": 3}),  # its section is {}
        ("gpu", "sudoku_train", {"runs.tutorial.arch.hidden_size": 64, "runs.hard9.batch_size": 3}),
        ("smoke", "checkpoints_train", {"runs.v9.loop.keep_optimizer": REMOVE}),
    ]:
        name = stage.replace("_", ".")
        after, expected = with_values(ground(profile, stage), values), unshared(merged(before, profile, name))
        for key, value in values.items():
            *parts, last = key.split(".")
            node = expected
            for part in parts:
                node = node[part]
            if value == REMOVE:
                del node[last]
            else:
                node[last] = value
        assert merged(after, profile, name) == expected
        assert {other: after["profiles"][other] for other in ("laptop", "smoke", "gpu") if other != profile} == {
            other: before["profiles"][other] for other in ("laptop", "smoke", "gpu") if other != profile
        }
    assert with_values(ground("gpu", "dialogue_data"), {"seed": 3})["profiles"]["gpu"]["dialogue"]["data"] == {
        "seed": 3
    }
    optim = merged(
        with_values(ground("smoke", "checkpoints_train"), {"runs.v9.optim": {"clip": 2.0}}),
        "smoke",
        "checkpoints.train",
    )["runs"]["v9"]["optim"]
    assert optim == merged(before, "laptop", "checkpoints.train")["runs"]["v9"]["optim"] | {"clip": 2.0}


def test_a_profile_of_ones_own_is_swept_like_any_other(tmp_path, monkeypatch):
    laid = load_params()
    laid["profiles"]["mine"] = {"checkpoints": {verb: {} for verb in laid["profiles"]["laptop"]["checkpoints"]}}
    laid["profiles"]["mine"]["checkpoints"]["sweep"] = {"trials": 3}
    alone = {"run": ["mine"], "profiles": {"mine": unshared(laid["profiles"]["laptop"])}}
    (tmp_path / "nbs").symlink_to(ROOT / "nbs")
    monkeypatch.setenv("HRM_ROOT", str(tmp_path))
    names = []
    for params, trials in ((laid, 3), (alone, 6)):
        (tmp_path / "params.yaml").write_text(plain_yaml(params))
        assert len(check(section("mine", "checkpoints.sweep", SweepConfig), "mine")) == trials
        trial = with_values(ground("mine", "checkpoints_train"), {"runs.v9.batch_size": 2})
        assert trial["run"] == ["mine"] and merged(trial, "mine", "checkpoints.train")["runs"]["v9"]["batch_size"] == 2
        with pytest.raises(ConfigError, match="profiles.mine.checkpoints.train.runs.v9.batch_sise: unknown key"):
            with_values(ground("mine", "checkpoints_train"), {"runs.v9.batch_sise": 2})
        trial["profiles"]["mine"]["checkpoints"]["sweep"] = {}
        trial["profiles"].setdefault("laptop", trial["profiles"]["mine"])["checkpoints"]["sweep"] = {}
        names.append(sweeps.trial_folder("checkpoints_train", "mine", {}, trial).name)
    assert names[0] == names[1], "what the values come to decides, not who says them"


def test_keys_that_are_numbers_stay_numbers_in_a_trial():
    one = {"lr": 1}
    assert unshared({12: one, "again": [one]}) == {12: {"lr": 1}, "again": [{"lr": 1}]}
    copied = unshared({12: one, 13: one})
    copied[12]["lr"] = 2
    assert copied[13] == one == {"lr": 1}


def test_every_stage_with_a_section_says_which_model_reads_it():
    for stage in (
        "sudoku_data",
        "sudoku_train",
        "dialogue_train",
        "dialogue_ablate",
        "checkpoints_data",
        "checkpoints_train",
    ):
        name, model = stage_section(stage)
        assert section("smoke", name, model)


def test_the_sweeps_of_all_profiles_can_be_run():
    for profile in ("smoke", "laptop", "gpu"):
        own = section(profile, "checkpoints.sweep", SweepConfig)
        assert len(check(own, profile)) == own.trials


# W&B


def test_what_wandb_fills_in_comes_back_as_it_was():
    "Through W&B's own code for the command line of an agent."
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    made = YAML(typ="safe").load(sweep_file(config(), "smoke"))
    assert (made["method"], made["run_cap"], made["metric"]) == (
        "random",
        5,
        {"name": "held_out.loss", "goal": "minimize"},
    )
    assert made["command"][:3] == ["${env}", "${interpreter}", "-m"] and made["command"][-1] == "${args}"
    assert set(made["parameters"]) == set(TRAIN["over"])
    assert made["parameters"]["runs.v9.loop.log_every"] == {"distribution": "int_uniform", "min": 1, "max": 8}
    base = ground("smoke", "checkpoints_train")
    for one in draw_trials(config()):
        flags = create_sweep_command_args({"args": {key: {"value": value} for key, value in one.items()}})["args"]
        assert parse_values(flags) == one
        with_values(base, parse_values(flags))


@pytest.mark.parametrize("words", [["lr=1"], ["--=1"], ["--lr"], ["--a=1", "b"], ["--a=[1"]])
def test_other_command_lines_are_refused(words):
    with pytest.raises(ConfigError, match="allowed"):
        parse_values(words)


def test_the_value_that_cannot_be_read_is_shown():
    for words in (["--a", "["], ["--a=["]):
        with pytest.raises(ConfigError, match=r"--a: found '\['; allowed: a number"):
            parse_values(words)


def test_an_agents_trial_is_refused_in_a_container(monkeypatch):
    "Its workplace consists of links, which lead nowhere inside."
    monkeypatch.setenv("HRM_RUNNER", "podman")
    monkeypatch.setattr(sweeps, "trial_folder", lambda *_: pytest.fail("work was started"))
    with pytest.raises(ConfigError, match="runner: found 'podman'; allowed for an agent's trial: host"):
        sweeps.run_trial("checkpoints_data", "smoke", {"seed": 1})


# params.yaml is put back


def test_parameters_are_put_back_after_an_error(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("a: 1  # kept\n")
    monkeypatch.setenv("HRM_ROOT", str(tmp_path))
    with pytest.raises(OSError), exchanged("a: 2\n"):
        assert (tmp_path / "params.yaml").read_text() == f"{EXCHANGED}a: 2\n"
        raise OSError
    assert (tmp_path / "params.yaml").read_text() == "a: 1  # kept\n"


def exchanging(tmp_path: Path) -> subprocess.Popen:
    "A process that has exchanged the parameters."
    (tmp_path / "params.yaml").write_text("a: 1  # kept\n")
    code = "import time\nfrom hrm.tools.sweep import exchanged\nwith exchanged('a: 2\\n'):\n    print('in', flush=True)\n    time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(HRM_ROOT=str(tmp_path), PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "in\n" and (tmp_path / "params.yaml").read_text() == f"{EXCHANGED}a: 2\n"
    return process


def test_parameters_are_put_back_after_sigterm(tmp_path):
    process = exchanging(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM and (tmp_path / "params.yaml").read_text() == "a: 1  # kept\n"


def test_parameters_are_put_back_after_a_kill_and_by_one_process_at_a_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HRM_ROOT", str(tmp_path))
    process = exchanging(tmp_path)
    with pytest.raises(ConfigError, match=f"is being exchanged by process {process.pid}"):
        put_back()
    assert stage_main(["lock"]) == 2 and "is being exchanged by" in capsys.readouterr().err
    process.kill()
    process.wait(10)
    with pytest.raises(ConfigError, match="found the parameters of a trial of `hrm sweep`"):
        load_params()
    assert stage_main(["lock"]) == 0 and "a killed `hrm sweep` had left a trial's; put back" in capsys.readouterr().err
    assert tiny.files(tmp_path) == {"params.yaml": b"a: 1  # kept\n"}


@pytest.mark.parametrize(
    "now, kept",
    [("a: 3  # written since\n", 1), (f"{EXCHANGED}a: 4  # the trial's, edited\n", 1), ("a: 1  # kept\n", 0)],
)
def test_parameters_that_were_written_since_stay_and_so_do_the_old_ones(tmp_path, monkeypatch, now, kept):
    monkeypatch.setenv("HRM_ROOT", str(tmp_path))
    process = exchanging(tmp_path)
    process.kill()
    process.wait(10)
    (tmp_path / "params.yaml").write_text(now)
    put_back()
    assert (tmp_path / "params.yaml").read_text() == now and load_params()
    assert [path.read_text() for path in (tmp_path / "data" / ".partial").glob("params.*.yaml")] == kept * [
        "a: 1  # kept\n"
    ]


def test_trials_are_made_of_the_projects_own_parameters(tmp_path, monkeypatch):
    monkeypatch.setenv("HRM_ROOT", str(tmp_path))
    process = exchanging(tmp_path)
    process.kill()
    process.wait(10)
    seen = []
    monkeypatch.setattr(sweeps, "ground", lambda *_: seen.append(load_params()))
    monkeypatch.setattr(sweeps, "check", lambda *_: [])
    assert sweeps.queue_trials(SweepConfig(**SWEEP), "smoke") == [] and seen == [{"a": 1}]


# In a copy of the project: DVC's queue and the agent

SWEEP = dict(
    stage="checkpoints_data",
    method="grid",
    trials=2,
    seed=0,
    metric="train",
    logged="train",
    goal="maximize",
    over={"demonstrations": [[2, 2], [3, 3]]},
)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    "A copy whose smoke profile sweeps its quickest stage."
    copy = copy_project(tmp_path_factory.mktemp("sweep") / "project")
    params = unshared(load_params(copy / "params.yaml"))
    laptop = dict.fromkeys(params["profiles"]["laptop"]["checkpoints"]["sweep"]["over"], REMOVE)
    params["profiles"]["smoke"]["checkpoints"]["sweep"] = SWEEP | {"over": laptop | SWEEP["over"]}
    params["profiles"]["smoke"]["checkpoints"]["data"] |= {
        "tasks": 20,
        "evaluation": 5,
        "disguises": 2,
        "identifiers": 41,
    }
    (copy / "params.yaml").write_text(plain_yaml(params))
    commit(copy, "A sweep of the quickest stage")
    return copy


def run(project: Path, *words: str, ok: bool = True, **extra: str) -> subprocess.CompletedProcess:
    return shell(*CLI, *words, cwd=project, ok=ok, PYTHONPATH=str(project), OMP_NUM_THREADS="1", **extra)


def test_dvc_runs_the_sweep_without_a_server(project, monkeypatch):
    before = (project / "params.yaml").read_bytes()
    shown = run(project, "run", "--profile", "smoke").stdout
    assert (project / "params.yaml").read_bytes() == before
    trials = {folder.name: folder for folder in (project / "data" / "trials").iterdir()}
    assert len(trials) == 2
    found = {
        tuple(json.loads((folder / "trial.json").read_text())["values"]["demonstrations"]): json.loads(
            (folder / "metrics.json").read_text()
        )
        for folder in trials.values()
    }
    rows = {shown_pairs: metrics["train"] for shown_pairs, metrics in found.items()}
    assert rows[3, 3] - rows[2, 2] == 40  # one demonstration more for each of 40 puzzles
    table = [line.split() for line in shown.splitlines() if line.startswith("checkpoints-data-smoke-")]
    assert [(line[0] in trials, float(line[-1])) for line in table] == [
        (True, rows[3, 3]),
        (True, rows[2, 2]),
    ]  # the best first
    experiments = shell(sys.executable, "-m", "dvc", "exp", "list", "--name-only", cwd=project).stdout.split()
    assert set(experiments) == set(trials)
    monkeypatch.setenv("HRM_ROOT", str(project))
    assert (
        sweeps.queue_trials(section("smoke", "checkpoints.sweep", SweepConfig), "smoke") == []
    )  # done: none is queued again


def test_agent_runs_one_trial_beside_the_project(project, monkeypatch):
    before = (project / "params.yaml").read_bytes()
    done = run(project, "agent", "checkpoints_data", "--profile", "smoke", "--tasks=21", "--identifiers=43")
    folder = Path(done.stdout.strip().splitlines()[-1].split(" -> ")[1])
    assert json.loads((folder / "metrics.json").read_text())["tasks"] == 21
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "trial.json"]  # its workplace is gone
    assert not (project / "data" / "smoke").exists() and (project / "params.yaml").read_bytes() == before
    monkeypatch.setenv("HRM_ROOT", str(project))
    monkeypatch.setattr(sweeps, "_workplace", lambda *_: pytest.fail("it was run again"))
    assert sweeps.run_trial("checkpoints_data", "smoke", {"tasks": 21, "identifiers": 43}) == (0, folder)


def test_ctrl_c_reaches_an_agents_trial_once(project):
    line = [*CLI, "agent", "checkpoints_data", "--profile", "smoke", "--tasks=22"]
    process = subprocess.Popen(
        line,
        cwd=project,
        env=environment(PYTHONPATH=str(project), OMP_NUM_THREADS="1"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while not list(project.glob("data/**/.partial/smoke/checkpoints_data/checkpoints_data.ipynb")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and told.count("SIGINT: stopping") == 1 and "once more" not in told, told


def test_bad_input_is_an_error_before_any_work(project, monkeypatch):
    monkeypatch.setenv("HRM_ROOT", str(project))
    with pytest.raises(
        ConfigError, match="needs data/smoke/checkpoints/data; make it with: dvc repro checkpoints_train@smoke"
    ):
        sweeps.run_trial("checkpoints_train", "smoke", {"seed": 1})
    wrong = run(project, "agent", "checkpoints_train", "--runs.v9.optim.lr=-1", ok=False)
    assert (
        wrong.returncode == 2
        and "found -1; allowed: greater than 0" in wrong.stderr
        and "Traceback" not in wrong.stderr
    )


def test_table_names_a_metric_that_is_no_number(tmp_path, monkeypatch):
    monkeypatch.setenv("HRM_ROOT", str(tmp_path))
    (tmp_path / "params.yaml").write_text("{}")
    for number, metrics in enumerate(({"a": {"b": 2}}, None, {"a": {"b": 1}})):
        folder = tmp_path / "data" / "trials" / f"t{number}"
        folder.mkdir(parents=True)
        (folder / "trial.json").write_text(
            json.dumps({"stage": "checkpoints_data", "profile": "smoke", "values": {"seed": number}})
        )
        if metrics:
            (folder / "metrics.json").write_text(json.dumps(metrics))
    one = validate(SWEEP | {"metric": "a.b", "goal": "minimize"}, SweepConfig)
    assert [(row["trial"], row["seed"], row["a.b"]) for row in results(one, "smoke")] == [
        ("t2", 2, 1),
        ("t0", 0, 2),
        ("t1", 1, None),
    ]
    assert results(one, "laptop") == []
    with pytest.raises(ConfigError, match="metric a.c: found None; allowed: the key of a number"):
        results(one.model_copy(update={"metric": "a.c"}), "smoke")
    said = {"stage": "checkpoints_data", "profile": "smoke", "values": {}}
    for wrong, why in (
        ({"stage": "../x"}, 'stage: found "../x"; allowed: a name'),
        ({"profile": None}, "profile: found null"),
        ({"profile": ".."}, 'profile: found ".."; allowed: a name'),
        ({"values": 3}, "values: found 3"),
        ({"stage": "a", "vlaues": {}}, "vlaues: unknown key"),
    ):
        (folder / "trial.json").write_text(json.dumps(said | wrong))
        with pytest.raises(ConfigError) as error:
            results(one, "smoke")
        assert str(error.value).startswith(f"{folder / 'trial.json'}, line 1: {why}") and "\n" not in str(error.value)


def test_wandb_tracks_an_agents_trial(project, monkeypatch):
    "Under an agent the trial's own tracking is switched on, in the mode that W&B was told; elsewhere it stays as it is."
    monkeypatch.setenv("HRM_ROOT", str(project))
    seen = []
    monkeypatch.setattr(
        sweeps, "_workplace", lambda folder, stage, profile, params: seen.append(params["tracking"]) or folder / "work"
    )
    monkeypatch.setattr(sweeps.subprocess, "Popen", lambda *_, **__: type("Done", (), {"wait": lambda self: 3})())
    for environ in ({}, {"WANDB_SWEEP_ID": "abc"}, {"WANDB_SWEEP_ID": "abc", "WANDB_MODE": "offline"}):
        for key, value in environ.items():
            monkeypatch.setenv(key, value)
        code, _ = sweeps.run_trial("checkpoints_data", "smoke", {"seed": 77})
        assert code == 3
    assert seen == ["disabled", "online", "offline"]
    assert os.environ["WANDB_MODE"] == "offline"
