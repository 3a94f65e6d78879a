"""params.yaml: what its profiles come to, and how DVC changes a value of them.

`HRM_WRITE_GOLDEN=1 pytest tests/test_params.py -k golden` writes the stored values again.
"""

import copy
import json
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from copies import ROOT, commit, shell
from dvc.exceptions import InvalidArgumentError
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from hrm.core.config import load_params, merged

PART = r"[A-Za-z_]\w*|\d+"  # of a key that DVC's parser reads: neither 4x4 nor names with blanks
GOLDEN = ROOT / "tests" / "golden" / "params.json"


def values(path: Path = ROOT / "params.yaml") -> dict[str, dict]:
    "Every section of every profile, merged, by names such as laptop.sudoku.train."
    params = load_params(path)
    return {
        f"{profile}.{system}.{verb}": merged(params, profile, f"{system}.{verb}", path)
        for profile, systems in params["profiles"].items()
        for system in systems
        for verb in systems[system]
    }


def test_golden_values():
    "Every number that a stage reads, in the order in which it reads them: sets are drawn by their place."
    lines = [f" {json.dumps(name)}: {json.dumps(section)}" for name, section in values().items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if os.environ.get("HRM_WRITE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    stored = GOLDEN.read_text(encoding="utf-8")
    was, now = json.loads(stored), json.loads(text)
    assert [name for name in was if was[name] != now.get(name)] == [] and list(was) == list(now)
    assert text == stored, "the same values in another order"


def test_an_anchor_stays_in_its_profile():
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    parts = re.split(r"(?m)^  \w+: +#", text)
    assert len(parts) == 4
    for part in parts[1:]:
        assert set(re.findall(r"\*(\w+)", part)) == set(re.findall(r"&(\w+)", part))


# DVC rewrites params.yaml for an experiment: `dvc exp run -S key=value`


@pytest.fixture
def written(tmp_path) -> Path:
    "A copy to change."
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path))


def test_no_mapping_is_used_twice():
    "DVC writes every value back, the old ones too: a mapping in two places would keep what its second place said."
    seen = Counter()

    def count(node):
        if isinstance(node, dict):
            seen[id(node)] += 1
            for value in node.values():
                count(value)

    count(document := YAML().load(ROOT / "params.yaml"))
    assert document and set(seen.values()) == {1}


def test_every_number_can_be_changed_and_all_else_stays(written):
    changes, expected = [], load_params(written)

    def change(node, at):
        for key, value in node.items():
            if isinstance(value, dict) and re.fullmatch(PART, str(key)):
                node[key] = change(copy.copy(value), f"{at}.{key}")
            elif type(value) in (int, float) and re.fullmatch(PART, str(key)):
                changes.append(f"{at}.{key}={value + 1}")
                node[key] = value + 1
        return node

    expected["profiles"] = change(expected["profiles"], "profiles")
    apply_overrides(written, changes)
    assert len(changes) > 1400 and load_params(written) == expected


@pytest.mark.parametrize(
    "change, reached",
    [
        (
            "profiles.smoke.sudoku.data.sets.easy9.train=12",
            {"smoke.sudoku.data": {"sets": {"easy9": {"train": 12}}}},
        ),  # the overlay has it
        (
            "++profiles.smoke.sudoku.data.sets={4x4: {train: 12}}",
            {"smoke.sudoku.data": {"sets": {"4x4": {"train": 12}}}},
        ),
        ("++profiles.smoke.sudoku.data.seed=3", {"smoke.sudoku.data": {"seed": 3}}),  # the overlay lacks it
        ("++profiles.gpu.dialogue.data.seed=3", {"gpu.dialogue.data": {"seed": 3}}),  # the overlay is {}
        ("++profiles.smoke.routing.data.seed=3", {"smoke.routing.data": {"seed": 3}}),
        (
            "++profiles.smoke.memory.train.runs.speed.optim.lr=0.5",
            {"smoke.memory.train": {"runs": {"speed": {"optim": {"lr": 0.5}}}}},
        ),
        (
            "profiles.laptop.sudoku.data.seed=8",
            {f"{profile}.sudoku.data": {"seed": 8} for profile in ("laptop", "smoke", "gpu")},
        ),
        ("~profiles.smoke.sudoku.evaluate.segments", {"smoke.sudoku.evaluate": {"segments": 32}}),  # back to laptop's
        (
            "profiles.gpu.checkpoints.train.runs.v9.loop.log_every=null",
            {"gpu.checkpoints.train": {"runs": {"v9": {"loop": {"log_every": None}}}}},
        ),
    ],
)
def test_an_experiment_reaches_both_profiles(written, change, reached):
    def laid(old, new):
        return {
            **old,
            **{key: laid(old[key], value) if isinstance(value, dict) else value for key, value in new.items()},
        }

    before = values()
    apply_overrides(written, [change])
    assert values(written) == {name: laid(section, reached.get(name, {})) for name, section in before.items()}


def test_an_experiment_can_take_a_key_away(written):
    apply_overrides(written, ["++profiles.smoke.sudoku.train.runs.tutorial.loop.keep_every=--remove--"])
    before, after = (one["smoke.sudoku.train"]["runs"]["tutorial"]["loop"] for one in (values(), values(written)))
    assert before == after | {"keep_every": 10} and "keep_every" not in after


def test_a_key_that_the_overlay_lacks_is_refused_without_plusses(written):
    with pytest.raises(InvalidArgumentError, match="Invalid `--set-param` value") as error:
        apply_overrides(written, ["profiles.smoke.sudoku.data.seed=3"])
    assert "Could not override 'profiles.smoke.sudoku.data.seed'" in str(error.value.__cause__)
    assert written.read_text() == (ROOT / "params.yaml").read_text()


# A pipeline of one stage

PARAMS = "profiles:\n  laptop: {toy: {train: {seed: 0, steps: 900}}}  # all\n  smoke: {toy: {train: {}}}\n"
STAGE = """\
stages:
  toy_train:
    matrix: {run: [laptop, smoke]}
    cmd: python toy.py ${item.run}
    params: ["profiles.${item.run}.toy.train", profiles.laptop.toy.train]
    outs: ["${item.run}.json"]
"""
TOY = """\
import json, sys
from hrm.core.config import load_params, merged
json.dump(merged(load_params(), sys.argv[1], "toy.train"), open(sys.argv[1] + ".json", "w"))
"""


def test_dvc_watches_and_changes_both_profiles(tmp_path):
    def dvc(*words, ok=True):
        return shell(sys.executable, "-m", "dvc", *words, cwd=tmp_path, ok=ok, PYTHONPATH=str(ROOT))

    def told(profile):
        return json.loads((tmp_path / f"{profile}.json").read_text())

    for name, text in {"params.yaml": PARAMS, "dvc.yaml": STAGE, "toy.py": TOY, ".gitignore": "/*.json\n"}.items():
        (tmp_path / name).write_text(text)
    shell("git", "init", "-q", "-b", "main", ".", cwd=tmp_path)
    dvc("init", "--quiet")
    dvc("config", "core.analytics", "false")
    dvc("repro", "--quiet")
    commit(tmp_path, "A pipeline")
    assert told("laptop") == told("smoke") == {"seed": 0, "steps": 900} and "{}" in (tmp_path / "dvc.lock").read_text()
    dvc("exp", "run", "--quiet", "-S", "++profiles.smoke.toy.train.seed=3")
    assert told("smoke") == {"seed": 3, "steps": 900} and told("laptop") == {"seed": 0, "steps": 900}
    dvc("exp", "run", "--quiet", "-S", "profiles.smoke.toy.train.seed=4", "-S", "profiles.laptop.toy.train.steps=7")
    assert told("smoke") == {"seed": 4, "steps": 7} and told("laptop") == {"seed": 0, "steps": 7}
    dvc("exp", "run", "--quiet", "-S", "++profiles.smoke.toy.train.sets={4x4: {train: 12}}", "toy_train@smoke")
    assert told("smoke") == {"seed": 4, "steps": 7, "sets": {"4x4": {"train": 12}}}
    refused = dvc("exp", "run", "-S", "profiles.smoke.toy.train.steps=3", ok=False)
    assert (
        refused.returncode and "Could not override 'profiles.smoke.toy.train.steps'" in refused.stderr + refused.stdout
    )
    (tmp_path / "params.yaml").write_text(PARAMS.replace("  smoke: {toy: {train: {}}}", "  smoke: {toy: {}}"))
    refused = dvc("repro", "toy_train@smoke", ok=False)
    assert refused.returncode and "profiles.smoke.toy.train" in refused.stderr
