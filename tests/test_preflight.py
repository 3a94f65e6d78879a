"The hardware table and the findings about machines that are not here, from records of what they say of themselves."

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from hrm.machine.benchmark import against, attention_rates, copy_rate, fastest
from hrm.core.config import ConfigError, validate
from hrm.machine.hardware import CARDS, driver_for, false_alarm, find_card, install_line, least_seconds, served_by
from hrm.machine.preflight import TROUBLES, Bench, _gpu, describe, driver_version, judge
from hrm.tools.doctor import doctor
from hypothesis import given
from hypothesis import strategies as st

RECORDS = Path(__file__).parent / "machines"
SPARE = {
    "place",
    "system",
    "Python",
    "processor",
    "torch",
    "driver",
    "GPU",
    "precision",
    "products",
    "TF32",
    "attention",
    "compile",
    "memory",
    "disk",
    "shared memory",
    "folder",
}


def recorded(name: str, **changes) -> Bench:
    return validate(json.loads((RECORDS / f"{name}.json").read_text()) | changes, Bench)


def findings(bench: Bench) -> dict:
    found = judge(bench)
    assert len({f.name for f in found}) == len(found), "two findings of one name"
    assert all(f.hint for f in found if f.state != "ok") and not any(f.hint for f in found if f.state == "ok")
    assert all(len(line) < 220 for f in found for line in str(f).splitlines())
    return {f.name: f for f in found}


def wrong(bench: Bench) -> dict[str, str]:
    return {name: f.state for name, f in findings(bench).items() if f.state != "ok"}


def test_a_sound_card():
    found = findings(recorded("rtx5090"))
    assert set(found) == SPARE | {"GPU code", "GPU memory", "NVML"} and {f.state for f in found.values()} == {"ok"}
    assert (
        found["GPU"].text == "NVIDIA GeForce RTX 5090, compute capability 12.0"
        and found["GPU code"].text == "runs sm_120"
    )
    assert found["attention"].text == "float32: efficient, bfloat16: flash" and found["precision"].text.startswith(
        "bfloat16"
    )
    assert found["TF32"].text == "off for float32 products (highest)"


def test_an_old_driver_is_told_before_anything_about_torch():
    found = findings(recorded("b200_old_driver"))
    assert wrong(recorded("b200_old_driver")) == {"driver": "error", "GPU": "error"}
    assert found["driver"].text == "570.86.10, but CUDA 13.0 needs 580 or later" and "580" in found["driver"].hint
    assert "See the driver" in found["GPU"].hint
    assert "driver" not in wrong(recorded("b200_old_driver", cuda="12.8", torch="2.10.0+cu128"))


def test_spark_in_nvidias_container():
    bench = recorded("gb10_container")
    found = findings(bench)
    assert wrong(bench) == {"shared memory": "error"} and "--ipc=host" in found["shared memory"].hint
    assert found["GPU code"].text == "runs sm_120; torch's warning that 12.1 is too new can be ignored"
    assert "no memory figure from it" in found["NVML"].text and found["GPU memory"].text.startswith(
        "119.7 GiB shared with the processor"
    )
    assert found["TF32"].text == "on for float32 products (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1; stages set it to 0)"
    assert found["place"].text == "in a container" and "/usr/local/cuda/bin/ptxas" in found["compile"].text
    assert wrong(recorded("gb10_container", ptxas=None, shm_gib=16.0)) == {"compile": "error"}


def test_a_wheel_without_code_for_the_card():
    found = findings(recorded("wheel_without_blackwell"))
    assert wrong(recorded("wheel_without_blackwell")) == {"GPU code": "error", "NVML": "note"}
    assert (
        "no code for capability 12.0" in found["GPU code"].text
        and found["GPU code"].hint == "In a fresh environment: pip install -r requirements.lock"
    )
    older = findings(recorded("wheel_without_blackwell", driver="570.124.06"))["GPU code"]
    assert "torch==2.10.*" in older.hint


def test_plain_pip_on_a_spark_before_torch_2_11():
    assert wrong(recorded("gb10_cpu_wheel")) == {"GPU": "error"}
    assert "built without CUDA" in findings(recorded("gb10_cpu_wheel"))["GPU"].text


def test_no_gpu_is_no_fault():
    assert wrong(recorded("cpu_only")) == {"compile": "note"}
    assert findings(recorded("cpu_only"))["GPU"].text == "none; the smoke and laptop profiles need none"


def test_two_cards_and_an_assembler_that_knows_neither():
    bench = recorded("b300_two")
    assert {"GPU 0", "GPU 1", "GPU code 0", "GPU code 1", "GPU memory 0", "GPU memory 1"} <= set(findings(bench))
    assert findings(bench)["GPU code 1"].text.startswith("runs sm_100") and wrong(bench) == {"compile": "error"}
    assert wrong(recorded("b300_two", triton="3.7.1")) == {}


@pytest.mark.parametrize(
    "change, name",
    [
        ({"disk_gb": 0.5}, "disk"),
        ({"writable": False}, "folder"),
        ({"python": [3, 10]}, "Python"),
        ({"shm_gib": 0.0625}, "shared memory"),
    ],
)
def test_room(change, name):
    assert wrong(recorded("rtx5090", **change)) == {name: "error"}


def thor(**changes) -> Bench:
    gpu = {
        "name": "NVIDIA Thor",
        "capability": [11, 0],
        "memory_gib": 122.8,
        "memory_from": "torch",
        "bf16": True,
        "nvml": "ok",
    }
    return recorded(
        "gb10_container", **({"gpus": [gpu], "shm_gib": 16.0, "ptxas": None, "ptxas_runs": False} | changes)
    )


def test_the_torch_that_is_advised_is_one_that_helps():
    had = thor(torch="2.11.0+cu130", triton="3.6.0")
    assert wrong(had) == {"compile": "error"} and findings(had)["compile"].hint.endswith("install torch 2.12 or later.")
    assert wrong(thor(torch="2.12.0+cu130", triton="3.7.1")) == {}
    spark = recorded("gb10_container", ptxas=None, ptxas_runs=False, shm_gib=16.0)
    assert findings(spark)["compile"].hint.endswith("install torch 2.11 or later.")


def test_an_assembler_that_is_not_there():
    bench = recorded("gb10_container", ptxas="/nowhere/ptxas", ptxas_runs=False, shm_gib=16.0)
    assert wrong(bench) == {"compile": "error"} and "/nowhere/ptxas" in findings(bench)["compile"].text


def test_the_assembler_is_looked_at(tmp_path, monkeypatch):
    program = tmp_path / "ptxas"
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(program))
    assert (describe().ptxas, describe().ptxas_runs) == (str(program), False)
    program.touch(0o644)
    assert not describe().ptxas_runs
    program.chmod(0o755)
    assert describe().ptxas_runs


def test_an_old_driver_is_not_answered_with_an_older_image():
    cause = "CUDA driver version is insufficient for CUDA runtime version"
    assert "12.8" not in next(mend for symptom, *_, mend in TROUBLES if symptom == cause)


@pytest.fixture
def two_gpus(monkeypatch):
    "torch sees a GB10 first and an older card second; the driver's library counts the other way round."
    import torch

    current, cards = [0], [("NVIDIA GB10", 12, 1, "aaaa"), ("NVIDIA Tesla T4", 7, 5, "bbbb")]
    told = {"GPU-aaaa": 119 * 2**30, "GPU-bbbb": 15 * 2**30}
    free = SimpleNamespace(total=120 * 2**30)

    class device:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *_):
            current.pop()

    facts = lambda i: SimpleNamespace(
        name=cards[i][0], major=cards[i][1], minor=cards[i][2], uuid=cards[i][3], total_memory=free.total
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", facts)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (0, free.total))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cards[current[-1]][1] >= 8)
    library = SimpleNamespace(
        nvmlInit=lambda: None,
        NVMLError=RuntimeError,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetHandleByIndex=lambda i: ["GPU-bbbb", "GPU-aaaa"][i],
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=told[handle]),
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return SimpleNamespace(told=told, torch=free)


def test_each_gpu_has_its_own_memory_and_types(two_gpus):
    assert [(gpu.memory_gib, gpu.memory_from, gpu.bf16) for gpu in map(_gpu, (0, 1))] == [
        (119.0, "driver library", True),
        (15.0, "driver library", False),
    ]


def test_an_answer_of_nothing_is_no_answer(two_gpus, monkeypatch):
    monkeypatch.setattr("hrm.core.device.machine", lambda: {"memory_gib": 119.7})
    two_gpus.told["GPU-aaaa"] = 0
    assert (_gpu(0).memory_gib, _gpu(0).memory_from) == (120.0, "torch")
    two_gpus.torch.total = 0
    assert (_gpu(0).memory_gib, _gpu(0).memory_from) == (119.7, "system")
    two_gpus.told["GPU-bbbb"] = 0  # has memory of its own: the system's says nothing of it
    assert _gpu(1).memory_gib is None


def test_a_record_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="unknown key"):
        recorded("rtx5090", colour="green")
    with pytest.raises(ConfigError, match="capability"):
        validate(
            json.loads((RECORDS / "rtx5090.json").read_text())
            | {
                "gpus": [
                    {
                        "name": "x",
                        "capability": "12.0",
                        "memory_gib": 1.0,
                        "memory_from": "torch",
                        "bf16": True,
                        "nvml": "ok",
                    }
                ]
            },
            Bench,
        )


def test_a_processor_says_what_it_multiplies_and_what_is_chosen():
    plain = findings(recorded("cpu_only"))
    assert plain["precision"].text.startswith("float32: neither avx512_bf16 nor AMX") and plain["products"].text == (
        "float32 90 GFLOP/s, bfloat16 2 GFLOP/s; the processor's flag: none, bfloat16 is emulated"
    )
    units = {"bf16_flag": "amx_bf16", "precision": ["bfloat16", "(amx_bf16)"], "gemm": {"float32": 90, "bfloat16": 300}}
    fast = findings(recorded("cpu_only", **units))
    assert fast["precision"].state == "ok" and fast["precision"].text == "bfloat16: (amx_bf16)"
    assert fast["products"].text == "float32 90 GFLOP/s, bfloat16 300 GFLOP/s; the processor's flag: amx_bf16"
    slow = findings(recorded("cpu_only", precision=["bfloat16", "asked for by HRM_DTYPE"]))["precision"]
    assert slow.state == "note" and slow.hint.startswith("Unset HRM_DTYPE")


def test_a_wish_for_a_precision_that_makes_no_sense(monkeypatch):
    monkeypatch.setenv("HRM_DTYPE", "fp8")
    bench = describe()
    assert bench.precision == ("", "HRM_DTYPE: found 'fp8'; allowed: auto, float32, bfloat16")
    assert wrong(bench)["precision"] == "error" and set(findings(bench)) >= SPARE


def test_this_machine_describes_itself():
    bench = describe()
    assert validate(json.loads(bench.model_dump_json()), Bench) == bench
    assert set(findings(bench)) >= SPARE
    assert bench.precision == ("float32", "asked for by HRM_DTYPE") and min(bench.gemm.values()) > 0


def test_doctor_as_json_and_its_exit_code():
    done = subprocess.run(
        [Path(sys.executable).parent / "hrm", "doctor", "--json"], cwd=ROOT, capture_output=True, text=True
    )
    told = json.loads(done.stdout)
    assert validate(told["bench"], Bench).torch == told["machine"]["torch"]
    assert done.returncode == int("error" in {f["state"] for f in told["findings"]})
    assert {"engine", "dvc", "project", *SPARE} <= {f["name"] for f in told["findings"]}


@pytest.mark.parametrize("runner", ["host", "docker"])
@pytest.mark.parametrize("flags", ["'open", "--shm-size=much"])
def test_flags_that_cannot_be_read_are_no_good_health(runner, flags, tmp_path, monkeypatch, capsys):
    client = tmp_path / "docker"
    client.write_text("#!/bin/sh\necho '[]'\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("HRM_RUNNER", runner)
    monkeypatch.setenv("HRM_RUN_ARGS", flags)
    assert doctor(as_json=True) == 1
    found = {f["name"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert found["engine"]["state"] == "error" and found["engine"]["text"].startswith("HRM_RUN_ARGS: found ")
    assert set(found) >= SPARE | {"project"}, "the machine was not looked at"


def test_judging_needs_no_torch():
    program = "import sys, hrm.machine.preflight, hrm.machine.container; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    "text, version",
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build", "580.95.05"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Wed Jan 15", "570.86.10"),
        ("nothing of the kind", None),
    ],
)
def test_driver_version(text, version, tmp_path, monkeypatch):
    (tmp_path / "version").write_text(text + "\nGCC version: 12.2.0\n")
    monkeypatch.setattr("hrm.machine.preflight.DRIVER_FILE", tmp_path / "version")
    assert driver_version() == version


# The rules

NUMBERS = [(7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)]


@given(
    st.sampled_from(NUMBERS),
    st.lists(st.sampled_from(NUMBERS), max_size=6),
    st.lists(st.sampled_from(NUMBERS), max_size=2),
)
def test_same_major_rule_by_brute_force(card, binaries, sources):
    entries = tuple(f"sm_{a}{b}" for a, b in binaries) + tuple(f"compute_{a}{b}" for a, b in sources)
    exact = sorted(n for n in binaries if n[0] == card[0] and n[1] <= card[1])
    translated = sorted(n for n in sources if n <= card)
    expected = "sm_%d%d" % exact[-1] if exact else "compute_%d%d" % translated[-1] if translated else None
    assert served_by(card, entries) == expected
    assert false_alarm(card, entries) == (bool(exact) and exact[-1] != card)


def test_other_makers_names_serve_nothing():
    assert served_by((9, 0), ("gfx90a", "gfx942")) is None and served_by((9, 0), ()) is None


def test_every_card_is_found_by_its_own_name_and_served_by_its_install_line():
    wheels = {
        "x86_64": ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
        "aarch64": ("sm_80", "sm_90", "sm_100", "sm_110", "sm_120"),
    }
    for card in CARDS:
        assert find_card(f"NVIDIA {card.name}") is card
        arch = "aarch64" if card.unified or card.name.startswith("GB") else "x86_64"
        assert install_line(card, arch) and served_by(card.capability, wheels[arch])
        assert driver_for("13.0", card) == 580 and card.driver in (570, 575, 580)


@pytest.mark.parametrize(
    "name, row",
    [
        ("NVIDIA GeForce RTX 5060", (19.2, 8, 448)),
        ("NVIDIA GeForce RTX 5060 Ti", (23.7, 16, 448)),
        ("NVIDIA GeForce RTX 5050", (13.2, 8, 320)),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", (126.0, 96, 1792)),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", None),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", None),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 5090 D", None),
    ],
)
def test_a_card_has_its_own_rates_or_none(name, row):
    card = find_card(name)
    assert (card and (card.fp32, card.memory, card.bandwidth)) == row


@given(st.floats(1, 1e18), st.floats(1, 1e15), st.sampled_from(CARDS))
def test_roofline(flop, moved, card):
    least = least_seconds(card, flop, moved)
    assert least >= moved / card.bandwidth / 1e9 and least >= flop / card.bf16 / 1e12
    assert least_seconds(card, flop, moved, "fp8") <= least <= least_seconds(card, flop, moved, "fp32")


def test_troubles_are_all_told():
    assert len({symptom for symptom, *_ in TROUBLES}) == len(TROUBLES) >= 6
    for word in ("unauthorized", "device driver", "root", "insufficient", "space", "syntax"):
        assert any(word in symptom for symptom, *_ in TROUBLES), word


# The benchmark's arithmetic


def test_rates_from_a_known_clock(monkeypatch):
    import torch

    ticks = iter(range(1000))
    monkeypatch.setattr("hrm.machine.benchmark.time.perf_counter", lambda: next(ticks) / 1.0)
    cpu = torch.device("cpu")
    assert fastest(lambda: None, cpu, 3) == 1.0
    assert copy_rate(cpu, 5, 2) == pytest.approx(2 * 5e6 / 1e9)
    assert attention_rates(cpu, 2, 16, heads=1, width=8, tries=1)["math"] == pytest.approx(7 * 2 * 2 * 16**2 * 8 / 1e12)


def test_against_the_data_sheet():
    rows = {
        row["what"]: row
        for row in against({"fp32": 50.0, "bf16": 100.0, "copy": 896.0}, find_card("NVIDIA GeForce RTX 5090"))
    }
    assert rows["copy"]["share"] == 0.5 and rows["copy"]["unit"] == "GB/s" and rows["bf16"]["ceiling"] == 209.5


def test_attention_and_the_step_have_ceilings_too():
    measured, kinds = (
        {"flash, bfloat16": 41.9, "step, 64 boards": 10.48, "copy": 896.0, "unknown": 1.0},
        {"flash, bfloat16": "bf16", "step, 64 boards": "fp32"},
    )
    rows = {row["what"]: row for row in against(measured, find_card("NVIDIA GeForce RTX 5090"), kinds)}
    assert rows["flash, bfloat16"]["share"] == pytest.approx(0.2) and rows["step, 64 boards"]["share"] == pytest.approx(
        0.1, rel=1e-3
    )
    assert (
        rows["step, 64 boards"]["unit"] == "TFLOP/s"
        and rows["copy"]["ceiling"] == 1792
        and rows["unknown"]["share"] is None
    )
    assert all(row["ceiling"] is None for row in against(measured, None, kinds))
    kept = json.loads((ROOT / "nbs/chapters/30_machine_benchmark.ipynb").read_text())["cells"][-1]["source"]
    assert '"against": [*rows, *attended, *stepped]' in "".join(kept)
