"Sweeps of the routers, their statistics, and trouble made on purpose."

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from copies import ROOT
from scipy import stats as scipy_stats
from typer.testing import CliRunner

from hrm.core.config import ConfigError, section, validate
from hrm.core.device import pick, seeded
from hrm.core.resume import Stopped
from hrm.core.run import changed
from hrm.core.stats import holm
from hrm.core.task import Options
from hrm.routing import sweep as sweeps
from hrm.routing.data import DataConfig, SetConfig, draw
from hrm.routing.data import build as build_data
from hrm.routing.model import build, losses
from hrm.routing.study import compare, effects, family, forest, from_summaries, read_tables, versus
from hrm.routing.sweep import (
    COLUMNS,
    FACTORS,
    GridConfig,
    Job,
    SweepConfig,
    change_of,
    grid,
    grid_jobs,
    one_at_a_time,
    settings_of,
    work,
)
from hrm.routing.train import RunConfig, run
from hrm.routing.trouble import SYMPTOMS, Meter, TroubleConfig, findings, footprint, restlessness, trouble_jobs

LEVELS = {
    "iters": [0, 1, 2, 4, 8, 12],
    "T": [2, 3, 4, 6, 8],
    "topk": [None, 1, 2, 4, 8],
    "lr_ctl": [5e-5, 1e-4, 2e-4, 5e-4],
    "ent_reg": [0.0, 5e-4, 1e-3, 2e-3, 5e-3],
    "use_act": [False, True],
}
HOME = {"iters": 8, "T": 4, "topk": None, "lr_ctl": 1e-4, "ent_reg": 1e-3, "use_act": False}
ADAM = {"name": "adamw", "lr": 3e-3, "betas": [0.9, 0.98], "weight_decay": 0.01, "clip": 1.0}
BASE = {
    "set": "main",
    "encoder": ADAM,
    "controller": ADAM | {"lr": 1e-3, "clip": 0.5},
    "other": ADAM,
    "epochs": 2,
    "evaluate_every": 1,
    "batch_size": 16,
    "arch": {
        "width": 16,
        "heads": 4,
        "expansion": 2,
        "controller": "hrm",
        "iters": 2,
        "T": 1,
        "topk": None,
        "cache_heads": True,
    },
    "deep_supervision": True,
    "temp_init": 2.0,
    "temp_min": 0.7,
    "temp_decay": 0.5,
    "entropy_reg": 1e-3,
    "entropy_decay_epochs": 1,
    "controller_warmup_epochs": 0,
    "ponder_tau": 0.01,
    "device": "cpu",
}
MEASURED = ["config_id", "seed", "status", "kendall", "loss", "routing_entropy", "tflop"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("routing")
    build_data(
        DataConfig(
            seed=0,
            sets={
                "main": SetConfig(length=6, mask_rate=0.5, train=64, dev=16, test=16),
                "long": SetConfig(length=9, mask_rate=0.5, test=8),
            },
        ),
        folder,
    )
    return folder


@pytest.fixture(scope="module")
def base() -> RunConfig:
    return validate(BASE, RunConfig)


def seeds(config_id, change, count=2, **more):
    return [Job("sweep", config_id, change, seed, **more) for seed in range(count)]


# --- what is swept


def test_the_checklists_levels_one_at_a_time():
    assert sum(map(len, LEVELS.values())) == 27
    found = one_at_a_time(HOME, LEVELS)
    assert len(found) == 23 and next(iter(found)) == "base" and found["base"] == HOME
    for name, one in found.items():
        differs = [factor for factor in FACTORS if one[factor] != HOME[factor]]
        assert len(differs) <= 1 or differs == ["iters", "T"], name
    periods = [one for name, one in found.items() if "T=" in name]
    assert sorted(one["T"] for one in periods) == LEVELS["T"] and all(one["iters"] >= 2 * one["T"] for one in periods)
    for factor, levels in LEVELS.items():
        assert {one[factor] for one in found.values()} >= set(levels)


def test_the_grid_holds_one_of_each_kind():
    found = list(grid(LEVELS, heads=4).values())
    assert len(list(itertools.product(*LEVELS.values()))) == 6000
    assert all(one["use_act"] or one["iters"] >= 2 * one["T"] or one["iters"] < 2 * min(LEVELS["T"]) for one in found)
    assert sum(one["iters"] == 0 for one in found) == 1  # nothing else matters then
    assert not [one for one in found if one["topk"] is not None and one["topk"] >= 4]
    rates, bonuses, tops = 4, 5, 3
    fixed = {1: 1, 2: 1, 4: 1, 8: 3, 12: 4}  # iterations -> periods in range, or one where none is
    assert len(found) == 1 + rates * bonuses * tops * (sum(fixed.values()) + len(fixed))
    config = validate(
        {
            "seeds": 2,
            "base": BASE,
            "factors": LEVELS,
            "shift": {"controllers": ["hrm"], "seeds": 1, "tests": ["long"]},
            "low_data": {"controllers": ["hrm"], "seeds": 1, "sizes": [32], "tests": ["long"]},
            "document": {},
            "resamples": 10,
            "seed": 0,
        },
        SweepConfig,
    )
    parts = [grid_jobs(config, GridConfig(part=part, parts=7, seeds=2)) for part in range(7)]
    assert len({job.config_id for part in parts for job in part}) == len(found) and sum(map(len, parts)) == 2 * len(
        found
    )


@pytest.mark.parametrize(
    "same",
    [
        ({"topk": None}, {"topk": 4}, {"topk": 8}),
        ({"T": 3, "use_act": True, "iters": 4}, {"T": 2, "use_act": True, "iters": 4}),
        ({"iters": 2, "T": 2}, {"iters": 2, "T": 6}),
        ({"iters": 0, "T": 2, "topk": 1}, {"iters": 0, "T": 3, "use_act": True}),
    ],
)
def test_what_the_grid_leaves_out_is_the_same_model(same, base):
    lists, found = draw(8, 7, 0.5, np.random.default_rng(0)), []
    for settings in same:
        model = build(base.varied(change_of(settings)).arch, seeded(0), pick("cpu"))
        said = model(lists["values"], lists["visible"])
        found.append(
            (losses(said, lists["ranks"])["rank"][-1].item() if settings.get("iters", 1) else said["rank"].shape)
        )
    assert len(set(found)) == 1


def test_settings_come_back_from_a_configuration(base):
    for one in (HOME, {"iters": 3, "T": 1, "topk": 2, "lr_ctl": 5e-3, "ent_reg": 0.0, "use_act": True}):
        assert settings_of(base.varied(change_of(one)).model_dump()) == one


@pytest.mark.parametrize("profile", ["laptop", "gpu"])
def test_the_profiles_ask_for_the_checklist(profile):
    config = section(profile, "routing.sweep", SweepConfig)
    scale = 10 if profile == "laptop" else 1
    assert config.factors == LEVELS | {"lr_ctl": pytest.approx([scale * rate for rate in LEVELS["lr_ctl"]])}
    assert config.seeds >= 5 and config.shift.seeds >= 5
    assert {"length_16", "length_20", "length_24", "hidden_20", "hidden_80", "main"} <= set(config.shift.tests) and set(
        config.shift.controllers
    ) == {"none", "classical", "hrm", "hrm_act"}
    assert (
        profile == "laptop"
        or config.low_data.sizes == (500, 1000, 2000, 5000, 10000)
        and config.base.varied(config.low_data.change).epochs == 50
    )
    trouble = section(profile, "routing.trouble", TroubleConfig)
    assert sorted(case.symptom for case in trouble.cases) == sorted(SYMPTOMS)
    for case in trouble.cases:  # with one head there is no gradient, and no knob of a controller's learning can matter
        assert all(trouble.base.varied(change).arch.topk != 1 for change in case.recipes(trouble.base).values())
    assert (trouble.base.arch.iters, trouble.base.arch.T) == (4, 2)  # what the knobs are more or fewer than


def test_the_parts_of_the_grid_can_be_queued():
    from hrm.tools.sweep import SweepConfig as Queue
    from hrm.tools.sweep import check

    for profile in ("smoke", "laptop", "gpu"):
        trials = check(section(profile, "routing.queue", Queue), profile)
        assert len({one["part"] for one in trials}) == len(trials) > 1
    assert sorted(one["part"] for one in trials) == list(range(64)) and {one["parts"] for one in trials} == {64}


@pytest.mark.parametrize(
    "change,says",
    [
        ({"factors": {"T": []}}, "factors.T: found no levels"),
        ({"factors": {"depth": [1]}}, "depth missing or unknown"),
        ({"document": {"arch": {"widht": 8}}}, "did you mean width"),
        ({"shift": {"controllers": []}}, "shift.controllers: found []"),
        ({"seeds": 1}, "seeds: found 1"),
    ],
)
def test_a_wrong_section_is_refused(change, says):
    values = {
        "seeds": 2,
        "base": BASE,
        "factors": LEVELS,
        "shift": {"controllers": ["hrm"], "seeds": 1, "tests": ["long"]},
        "document": {},
        "resamples": 10,
        "seed": 0,
        "low_data": {"controllers": ["hrm"], "seeds": 1, "sizes": [32], "tests": ["long"]},
    }
    with pytest.raises(ConfigError) as error:
        validate(changed(values, change), SweepConfig)
    assert says in str(error.value)


# --- running


def test_a_broken_run_is_a_row_and_the_rest_goes_on(data, base, tmp_path, monkeypatch):
    def breaks(name, config, seed, *args, **kwargs):
        if config.arch.iters == 1 and seed == 0:
            raise RuntimeError("the card\nis gone")
        return run(name, config, seed, *args, **kwargs)

    monkeypatch.setattr(sweeps, "run", breaks)
    todo = (
        seeds("iters=1", {"arch": {"iters": 1}})
        + seeds("T=0", {"arch": {"T": 0}}, 1)
        + seeds("set", {"set": "nowhere"}, 1)
        + seeds("base", {}, 1, tests=("long",))
    )
    frame = work(todo, base, data, tmp_path / "table.csv", Options(tmp_path / "resume", progress=False))
    assert frame.status.tolist() == ["failed", "done", "failed", "failed", "done"]
    assert (
        frame.error[0] == "RuntimeError: the card is gone"
        and "arch.T: found 0; allowed: greater than 0" in frame.error[2]
        and "no such lists" in frame.error[3]
    )
    assert 0 < frame.tests[4]["long"]["loss"] < 10
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS) and len(lines) == 6
    assert lines[0] == (
        "config_id,seed,iters,T,topk,lr_ctl,ent_reg,use_act,train_time_s,tokens_per_s,peak_mem_gb,kendall,perfect,accuracy,routing_entropy,"
        "head_concentration,n_H_updates,status,error"
    )
    table = read_tables([tmp_path / "table.csv"])
    assert table["T"].tolist() == [1, 1, 0, 1, 1] and table.topk.isna().all() and table.kendall.isna().sum() == 3
    assert (table.loc[table.status == "done", ["train_time_s", "tokens_per_s", "peak_mem_gb"]] > 0).all(axis=None)
    assert len(list((tmp_path / "resume").rglob("*"))) == 2 + 2, "the rows of what was done, and no run"


def test_a_missing_test_set_is_told_before_anything_is_trained(data, base, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "run", lambda *args, **kwargs: pytest.fail("trained"))
    with pytest.raises(ConfigError, match="lang/test.safetensors: no such lists"):
        work(
            seeds("base", {}) + seeds("other", {}, tests=("main", "lang")),
            base,
            data,
            tmp_path / "table.csv",
            Options(tmp_path / "resume", progress=False),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", [("low_data", "document"), ("shift",)])
def test_the_chapter_goes_on_where_a_whole_study_broke(tmp_path, monkeypatch, broken):
    "The chapter on the sweep, with made-up results of its runs."
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.setenv("HRM_ROOT", str(tmp_path))
    build_data(section("smoke", "routing.data", DataConfig), tmp_path / "data" / "smoke" / "routing" / "data")
    names = (
        "loss",
        "greedy_tau",
        "accuracy",
        "routing_entropy",
        "routing_entropy_std",
        "head_concentration",
        "top1_share",
        "n_H_updates",
        "perfect",
        "tflop",
        "train_time_s",
        "tokens_per_s",
        "peak_mem_gb",
    )

    def outcome(job, base, *more):
        row = {"study": job.study, "config_id": job.config_id, "seed": job.seed} | settings_of(
            changed(base.model_dump(), job.change)
        )
        if job.study in broken:
            return row | {"status": "failed", "error": "RuntimeError: gone"}
        tau = 0.4 + 0.01 * job.seed + 0.001 * len(job.config_id)
        return (
            row
            | dict.fromkeys(names, tau)
            | {
                "kendall": tau,
                "tests": {name: {"tau": tau, "loss": 3.0} for name in job.tests},
                "status": "done",
                "error": "",
            }
        )

    monkeypatch.setattr(sweeps, "outcome", outcome)
    cells = json.loads((ROOT / "nbs" / "chapters" / "53_routing_sweep.ipynb").read_text())["cells"]
    exec("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"), {})
    report = tmp_path / "reports" / "smoke" / "routing_sweep"
    rows = json.loads((report / "metrics.json").read_text())["rows"]
    assert {row["study"] for row in rows if row["status"] == "failed"} == set(broken) and len(
        json.loads((report / "claims.json").read_text())
    ) == 7


def test_rows_say_what_the_run_says(data, base, tmp_path):
    frame = work(
        seeds("act", {"arch": {"controller": "hrm_act"}}, 1),
        base,
        data,
        None,
        Options(tmp_path / "resume", progress=False),
    )
    alone = run(
        "alone",
        base.varied({"arch": {"controller": "hrm_act"}}),
        0,
        data,
        tmp_path / "out",
        Options(tmp_path / "again", progress=False),
    ).metrics["held_out"]
    row = frame.iloc[0]
    assert (row.kendall, row.perfect, row.accuracy, row.loss) == (
        alone["tau"],
        alone["perfect_visible"],
        alone["accuracy"],
        alone["loss"],
    )
    assert (row.routing_entropy, row.head_concentration, row.n_H_updates) == (
        alone["routing_entropy"],
        alone["head_concentration"],
        alone["n_H_updates"],
    )
    assert row.use_act and 1 / 4 <= row.head_concentration <= 1 and 0 < row.routing_entropy <= np.log(4) + 1e-6


def _sweep(todo, base, data, folder):
    work(todo, base, data, folder / "table.csv", Options(folder / "resume", progress=False))


def test_a_killed_sweep_goes_on_with_the_same_rows(data, base, tmp_path, monkeypatch):
    todo = seeds("base", {}) + seeds("iters=1", {"arch": {"iters": 1}}) + seeds("topk=1", {"arch": {"topk": 1}}, 1)
    whole = work(todo, base, data, None, Options(tmp_path / "whole", progress=False))
    process = multiprocessing.get_context("fork").Process(target=_sweep, args=(todo, base, data, tmp_path / "cut"))
    process.start()
    table, end = tmp_path / "cut" / "table.csv", time.monotonic() + 120
    while (
        not (table.is_file() and len(table.read_text().splitlines()) > 2)
        and time.monotonic() < end
        and process.is_alive()
    ):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = {file.name: file.read_bytes() for file in (tmp_path / "cut" / "resume" / "rows").glob("*/*.json")}
    assert process.exitcode == -signal.SIGKILL and 2 <= len(kept) < len(todo)
    calls = []
    monkeypatch.setattr(sweeps, "run", lambda name, *args, **kwargs: calls.append(name) or run(name, *args, **kwargs))
    frame = work(todo, base, data, table, Options(tmp_path / "cut" / "resume", progress=False))
    assert len(calls) == len(todo) - len(kept)
    pd.testing.assert_frame_equal(frame[MEASURED], whole[MEASURED])
    assert len(table.read_text().splitlines()) == len(todo) + 1
    assert {file.suffix for file in (tmp_path / "cut" / "resume" / "rows").glob("*/*")} == {".json"}
    calls.clear()
    again = work(todo, base, data, table, Options(tmp_path / "cut" / "resume", progress=False))
    assert calls == [] and again[MEASURED].equals(frame[MEASURED]), (
        "of a sweep that is complete nothing is trained again"
    )


@pytest.mark.parametrize("place", ["table.csv", "resume/rows"])
def test_one_sweep_at_a_time_fills_a_table(data, base, tmp_path, place):
    holder = "import sys, time; from hrm.core.files import Lock; Lock.take(sys.argv[1]); print('mine', flush=True); time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-c", holder, tmp_path / place], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "mine\n"
    with pytest.raises(ConfigError, match=f"{place}: is being (written|filled) by process {first.pid} on "):
        work(seeds("base", {}, 1), base, data, tmp_path / "table.csv", Options(tmp_path / "resume", progress=False))
    first.kill()
    first.wait(10)
    assert not (tmp_path / "table.csv").exists()


def test_a_table_stays_until_the_next_one_is_complete(data, base, tmp_path, monkeypatch):
    table, partial = tmp_path / "table.csv", tmp_path / "table.partial.csv"
    todo = seeds("base", {}) + seeds("iters=1", {"arch": {"iters": 1}})
    work(todo, base, data, table, Options(tmp_path / "resume", progress=False))
    before, calls = table.read_bytes(), []

    def stops(name, *args, **kwargs):
        calls.append(name)
        if len(calls) == 2:
            raise Stopped("asked to")
        return run(name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "run", stops)
        with pytest.raises(Stopped):
            work(
                seeds("topk=1", {"arch": {"topk": 1}}), base, data, table, Options(tmp_path / "resume", progress=False)
            )
    assert table.read_bytes() == before and len(partial.read_text().splitlines()) == 2
    work(todo[:1], base, data, table, Options(tmp_path / "resume", progress=False))
    assert len(table.read_text().splitlines()) == 2 and not partial.exists()


def test_a_stop_stops_and_other_lists_or_recipes_share_no_rows(data, base, tmp_path, monkeypatch):
    names = []

    def stops(name, *args, **kwargs):
        names.append(name)
        if len(names) == 2:
            raise Stopped("asked to")
        return run(name, *args, **kwargs)

    monkeypatch.setattr(sweeps, "run", stops)
    with pytest.raises(Stopped):
        work(seeds("base", {}), base, data, None, Options(tmp_path, progress=False))
    assert len(list((tmp_path / "rows").glob("*/*.json"))) == 1
    work(seeds("base", {}, 1), base, data, None, Options(tmp_path, progress=False))
    assert len(names) == 2  # the kept row is its own
    work(
        seeds("base", {}, 1),
        base.model_copy(update={"epochs": 1, "evaluate_every": 1}),
        data,
        None,
        Options(tmp_path, progress=False),
    )
    assert len(names) == 3  # and not this recipe's


# --- statistics


def test_compare_is_scipys():
    rng = np.random.default_rng(0)
    for n in (2, 5, 9):
        a, b = rng.normal(0.3, 1, n), rng.normal(0, 2, n)
        found, paired, apart = (
            compare(a, b, rng),
            scipy_stats.ttest_rel(a, b),
            scipy_stats.ttest_ind(a, b, equal_var=False),
        )
        assert (found["p"], found["p_welch"], found["t"], found["df"]) == pytest.approx(
            (paired.pvalue, apart.pvalue, apart.statistic, apart.df)
        )
        low, high = paired.confidence_interval(0.95)
        assert (found["difference"].low, found["difference"].high) == pytest.approx((low, high))
        pooled = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
        assert abs(found["g"]) < abs((a - b).mean() / pooled) and np.sign(found["g"]) == np.sign(found["t"]) == np.sign(
            found["difference"].value
        )
        assert found["bootstrap"].low <= found["difference"].value <= found["bootstrap"].high
        back = compare(b, a, rng)
        assert (back["t"], back["g"], back["difference"].value) == pytest.approx(
            (-found["t"], -found["g"], -found["difference"].value)
        )
    with pytest.raises(ValueError, match="two or more"):
        compare([1.0], [2.0], rng)


def test_a_family_is_adjusted_together():
    rng = np.random.default_rng(1)
    rows = [compare(rng.normal(shift, 1, 5), rng.normal(0, 1, 5), rng) for shift in (0, 0, 3, 8)]
    found = family(rows)
    assert (
        found.p_holm.tolist() == pytest.approx(holm([row["p"] for row in rows]).tolist())
        and (found.p_holm >= found.p).all()
    )
    assert found.p_welch_holm.tolist() == pytest.approx(holm([row["p_welch"] for row in rows]).tolist())
    assert len(family([])) == 0


def test_without_an_effect_few_discoveries_are_made():
    "Of families of twenty comparisons without any effect about one in twenty has a discovery after Holm, and most have one before."
    rng, after, before = np.random.default_rng(2), 0, 0
    for _ in range(60):
        p = scipy_stats.ttest_rel(*rng.normal(size=(2, 5, 20)), axis=0).pvalue
        before, after = before + (p < 0.05).any(), after + (holm(p) < 0.05).any()
    assert after <= 9 and before >= 25


def table_of(shifts, count=5):
    "A sweep's table with known effects."
    rows = []
    for number, (name, (settings, shift)) in enumerate(shifts.items()):
        rng = np.random.default_rng(number)
        rows += [
            dict.fromkeys(COLUMNS)
            | HOME
            | settings
            | {
                "config_id": name,
                "seed": seed,
                "status": "done",
                "kendall": 0.4 + 0.1 * seed + shift + rng.normal(0, 0.002),
            }
            for seed in range(count)
        ]
    return pd.DataFrame(rows)


SHIFTS = {
    "base": ({}, 0.0),
    "iters=2": ({"iters": 2}, -0.2),
    "iters=16, T=4": ({"iters": 16}, 0.1),
    "iters=16, T=8": ({"iters": 16, "T": 8}, 0.13),
    "topk=1": ({"topk": 1}, 0.0),
    "use_act=True": ({"use_act": True}, 0.02),
}


def test_effects_are_found_against_the_right_reference():
    table = table_of(SHIFTS)
    found = effects(table, np.random.default_rng(0)).set_index("config_id")
    assert found.against.to_dict() == {
        "iters=2": "base",
        "iters=16, T=4": "base",
        "iters=16, T=8": "iters=16, T=4",
        "topk=1": "base",
        "use_act=True": "base",
    }
    assert {name: round(row.difference.value, 2) for name, row in found.iterrows()} == {
        "iters=2": -0.2,
        "iters=16, T=4": 0.1,
        "iters=16, T=8": 0.03,
        "topk=1": 0.0,
        "use_act=True": 0.02,
    }
    assert set(found.index[found.p_holm < 0.05]) == {
        "iters=2",
        "iters=16, T=4",
        "iters=16, T=8",
        "use_act=True",
    }  # paired: seeds differ by far more
    assert (found.p_welch_holm > 0.05).sum() >= 3
    shuffled = effects(table.sample(frac=1, random_state=0), np.random.default_rng(0)).set_index("config_id")
    assert shuffled.p[found.index].tolist() == pytest.approx(found.p.tolist())
    fig = forest({"tau": found.reset_index(), "the same": found.reset_index()})
    assert [tick.get_text() for tick in fig.axes[0].get_yticklabels()][2] == "T = 8  (against iters=16, T=4)"


def test_failed_and_missing_runs_are_left_out_of_pairs():
    table = table_of(SHIFTS)
    table.loc[(table.config_id == "topk=1") & (table.seed > 2), ["status", "kendall"]] = ["failed", None]
    table = table[~((table.config_id == "iters=2") & (table.seed > 0))]
    found = effects(table, np.random.default_rng(0)).set_index("config_id")
    assert found.n["topk=1"] == 3 and "iters=2" not in found.index
    with pytest.raises(ConfigError, match="two different results"):
        effects(pd.concat([table, table.assign(kendall=0.0)]), np.random.default_rng(0))
    with pytest.raises(ConfigError, match="no finished run of 'home'; allowed as base: base"):
        effects(table, np.random.default_rng(0), base="home")


def test_versus_compares_within_each_set():
    rows = [
        {"controller": c, "seed": s, "set": d, "tau": 0.5 + 0.1 * s + (0.05 + 0.001 * s) * (c == "hrm") * (d == "long")}
        for c in ("none", "hrm", "classical")
        for s in range(5)
        for d in ("main", "long")
    ]
    found = versus(pd.DataFrame(rows), "none", np.random.default_rng(0)).set_index(["set", "controller"])
    assert len(found) == 4 and found.p_holm["long", "hrm"] < 0.001 and (found.p.drop(("long", "hrm")) == 1).all()


def test_the_documents_significance_is_none():
    half = np.sqrt(3) / 1.96
    found = from_summaries((0.1083, 0.0028 * half, 3), (0.0913, 0.0174 * half, 3))
    assert (
        found["p"] == pytest.approx(0.193, abs=0.001) and found["d"] == pytest.approx(1.54, abs=0.01) and found["t"] > 0
    )
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    same = from_summaries((a.mean(), a.std(ddof=1), 7), (b.mean(), b.std(ddof=1), 7))
    assert (same["t"], same["p"]) == pytest.approx(
        (scipy_stats.ttest_ind(a, b, equal_var=False).statistic, scipy_stats.ttest_ind(a, b, equal_var=False).pvalue)
    )


@pytest.mark.parametrize(
    "text,says",
    [
        ("config_id,seed\nbase,0\n", "line 1: column iters, T"),
        ("", "cannot be read"),
        (
            ",".join(COLUMNS) + "\nbase,0,8,4,,1e-4,1e-3,False,1,1,1,high,1,1,1,1,1,done,\n",
            "line 2: kendall: found 'high'",
        ),
    ],
)
def test_reading_a_table_says_what_is_wrong(tmp_path, text, says):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_tables([tmp_path / "table.csv"])
    assert says in str(error.value) and "table.csv" in str(error.value)


def test_parts_of_a_sweep_are_read_together(tmp_path):
    table = table_of(SHIFTS)
    table[:12].to_csv(tmp_path / "a.csv", index=False)
    table[10:].to_csv(tmp_path / "b.csv", index=False)
    (tmp_path / "metrics.json").write_text(
        json.dumps({"rows": json.loads(table.drop(columns="train_time_s").to_json(orient="records"))})
    )
    both, alone = read_tables([tmp_path / "a.csv", tmp_path / "b.csv"]), read_tables([tmp_path / "metrics.json"])
    for one in (both, alone):
        assert effects(one, np.random.default_rng(0)).p.tolist() == pytest.approx(
            effects(table, np.random.default_rng(0)).p.tolist()
        )


def test_the_study_from_a_terminal(tmp_path):
    from hrm.tools.cli import main
    from hrm.tools.commands.routing import app

    table_of(SHIFTS).to_csv(tmp_path / "table.csv", index=False)
    said = CliRunner().invoke(
        app, ["study", str(tmp_path / "table.csv"), "--resamples", "50", "--out", str(tmp_path / "out")]
    )
    assert said.exit_code == 0 and "kendall: 4 of 5 comparisons at p < 0.05 after Holm" in said.output
    assert (tmp_path / "out" / "forest.png").read_bytes()[:4] == b"\x89PNG" and len(
        pd.read_csv(tmp_path / "out" / "effects.csv")
    ) == 5
    assert main(["routing", "study", str(tmp_path / "nothing.csv")]) == 2
    assert main(["routing", "sweep", "--study", "everything"]) == 2


# --- trouble


def test_rest_and_unrest():
    alphas = np.zeros((9, 3, 2, 4))
    alphas[..., 0] = 1
    assert restlessness(alphas) == 0
    alphas[1::2] = np.roll(alphas[1::2], 1, -1)
    assert restlessness(alphas) == 1
    half = alphas.copy()
    half[:, :, 1] = alphas[:1, :, 1]  # one of two iterations moves
    assert restlessness(half) == 0.5


def test_the_meter_counts_bytes_and_launches():
    x, w = torch.randn(50, 40), torch.randn(40, 40, requires_grad=True)
    with Meter() as meter:
        y = (x @ w).relu().sum()
    kept = 2 * 50 * 40 * 4 + 4  # product, its positive part, the sum; relu keeps its result, so the product may go
    assert kept / 2 < meter.peak <= kept and meter.launches == 3
    with Meter() as meter:
        y.backward()
    assert meter.alive == 40 * 40 * 4 and w.grad is not None  # the gradient stays, all else is gone
    with Meter() as meter:
        x.view(-1)[3:].unsqueeze(0).T
    assert (meter.launches, meter.peak) == (0, 0)


def test_checkpointing_saves_bytes_and_costs_arithmetic_for_the_same_gradient(base):
    long = base.varied({"arch": {"iters": 12, "cache_heads": False}, "deep_supervision": False})
    plain, again = (
        footprint(long.varied({"arch": {"checkpointing": one}}), np.random.default_rng(0)) for one in (False, True)
    )
    assert again["peak_bytes"] < plain["peak_bytes"] / 2 and 1.2 < again["flop"] / plain["flop"] < 1.4
    lists, grads = draw(8, 7, 0.5, np.random.default_rng(0)), []
    for one in (False, True):
        model = build(long.arch.model_copy(update={"checkpointing": one}), seeded(0), pick("cpu"))
        losses(model(lists["values"], lists["visible"]), lists["ranks"])["rank"].mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) and all(torch.equal(a, b) for a, b in zip(*grads))


def test_trouble_is_made_and_measured(data, tmp_path):
    "Two symptoms that a handful of steps produces for certain: a softmax so warm that it is flat, and one so cold that it is a choice."
    small = section("smoke", "routing.trouble", TroubleConfig)
    cases = [case.model_dump() for case in small.cases]
    sick = {
        "uniform alphas": {"temp_init": 1000.0, "temp_min": 1000.0},
        "one-head collapse": {"temp_init": 1e-3, "temp_min": 1e-3},
    }
    knob = {
        "uniform alphas": {"temp_init": 0.05, "temp_min": 0.05},
        "one-head collapse": {"temp_init": 0.9, "temp_min": 0.9},
    }
    for case in cases:
        if case["symptom"] in sick:
            case |= {"sick": sick[case["symptom"]], "knobs": {"knob": knob[case["symptom"]]}}
    config = validate(
        {
            "seeds": 2,
            "base": changed(BASE, {"epochs": 3}),
            "long": "long",
            "cases": cases,
            "repeats": 1,
            "compile": False,
            "resamples": 20,
            "seed": 0,
        },
        TroubleConfig,
    )
    todo = trouble_jobs(config)
    assert all(job.traced for job in todo) and {job.study for job in todo} == {"healthy", *SYMPTOMS} - {
        "out of memory",
        "slow",
    }
    frame = work(todo, config.base, data, None, Options(tmp_path, progress=False))
    found = findings(config, frame, np.random.default_rng(0)).set_index(["symptom", "recipe"])
    assert found.value["uniform alphas", "sick"] > 0.9999 > 0.98 > found.value["uniform alphas", "knob"]
    assert found.value["one-head collapse", "sick"] > 0.99 > 0.7 > found.value["one-head collapse", "knob"]
    assert (found.value["out of memory"].iloc[1:] < found.value["out of memory"].iloc[0]).all() and (
        found.value["slow"].iloc[1:] < found.value["slow"].iloc[0]
    ).all()
    broken = frame.assign(status=["failed", *frame.status[1:]], error="RuntimeError: gone")
    with pytest.raises(ValueError, match="healthy, none: RuntimeError: gone"):
        findings(config, broken, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="allowed: each once of"):
        validate(config.model_dump() | {"cases": cases[:3]}, TroubleConfig)
    with pytest.raises(ConfigError, match="allowed: two evaluations or more"):
        validate(changed(config.model_dump(), {"base": {"evaluate_every": 2}}), TroubleConfig)
