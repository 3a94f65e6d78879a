"""The container, really built and run, on a base that is made here: do its stages give the same metrics.json as the host's?

    python benchmarks/container.py [--out reports/benchmarks/container.json]

NVIDIA's image has 20 GB and wants a network. The base that is made instead has what matters about it: a Debian or Ubuntu of
this machine's release from this machine's mirror, a torch whose version is not the one of the lock, pip settings and a list
of pins that get in the way, a user with id 1000, an entry point of its own. `docker/Dockerfile` is then built on it
unchanged, without a network, from the wheels that the lock names. podman and runc do the work; it needs root, podman, runc,
catatonit and mmdebstrap. Base and image are kept for the next time in `~/.cache/hrm/container` (3 GB), or in the folder that
`HRM_WORKSHOP` names, until what they are made of changes; where that is empty, nothing is kept.
"""

import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import Requirement

from hrm.core.config import ConfigError, root
from hrm.core.files import Lock, write_atomic
from hrm.machine.container import build_line

IMAGE, BASE = "localhost/hrm:test", "localhost/vendor:test"
VENDOR = "2.14.0a0+b2c75dd062.nv26.9.70890589"  # what such an image's metadata says of its torch
SPOKEN = "2.14.0a0+b2c75dd062.nv26.09"  # and what torch says of itself
STAGES = ("sudoku_data", "sudoku_train", "sudoku_evaluate")  # of which the metrics are compared
ARGS = (
    "--ipc=host --network=none --env=NUMBA_CACHE_DIR="  # what numba compiled stays beside the modules, as on the host
)
SETTINGS = {"HRM_RUNNER": "podman", "HRM_IMAGE": IMAGE, "HRM_GPU_ARGS": "", "HRM_RUN_ARGS": ARGS}


class Missing(RuntimeError):
    "Something that building a container here needs is not there."


def call(*line: str | Path, **options) -> str:
    "What a program prints. Raises RuntimeError with all it said if it fails."
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, line))}: exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return done.stdout


def sources() -> tuple[str, str, str]:
    "Mirror, release and components that this machine's own apt uses. Raises `Missing`."
    release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.M)
    if release is None or not shutil.which("apt-get"):
        raise Missing("no apt with a release of its own to copy")
    listed = call(
        "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages"
    ).splitlines()
    rows = [line.split() for line in listed if line.split()[1:2] == [release[1]]]
    if not rows:
        raise Missing("apt names no mirror of this release")
    return (
        rows[0][0],
        release[1],
        " ".join(sorted({row[2] for row in rows if row[0] == rows[0][0]} & {"main", "universe"})),
    )


def check() -> None:
    "Is all here that building and running needs? Raises `Missing` that says what is not."
    absent = [
        name
        for name in ("podman", "runc", "catatonit", "mmdebstrap")
        if not shutil.which(name) and not Path(f"/usr/libexec/podman/{name}").exists()
    ]
    if absent:
        raise Missing(f"{', '.join(absent)} not installed")
    if os.geteuid():
        raise Missing("not root: podman and mmdebstrap are used without a user namespace")
    sources()


# The wheels


def wheels(folder: Path, python: tuple[int, int, int]) -> None:
    "Every locked requirement for a version of Python, as files in `wheels`. Raises `Missing` where the index does not give them."
    marks = {"python_full_version": ".".join(map(str, python)), "python_version": "%d.%d" % python[:2]}
    locked = [
        Requirement(line)
        for line in (root() / "requirements.lock").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    wanted = [f"{one.name}{one.specifier}" for one in locked if one.marker is None or one.marker.evaluate(marks)]
    (folder / "wanted.txt").write_text("\n".join(wanted) + "\n")
    try:
        call(
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--python-version",
            "%d.%d" % python[:2],
            "--dest",
            folder / "wheels",
            "-r",
            folder / "wanted.txt",
        )
    except RuntimeError as e:
        raise Missing(f"pip cannot download the locked requirements: {str(e).strip().splitlines()[-1]}") from e
    if not list((folder / "wheels").glob("torch-*cpu*")) + list((folder / "wheels").glob("torch-*aarch64*")):
        raise Missing("the package index offers no torch for the processor alone")


def revision(site: Path, package: str, version: str) -> None:
    "Give an unpacked package another version: in its metadata, and in the name of the folder that holds them."
    old = next(site.glob(f"{package}-*.dist-info"))
    text = (old / "METADATA").read_text()
    (old / "METADATA").write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", text, count=1))
    (old / "RECORD").write_text((old / "RECORD").read_text().replace(old.name, f"{package}-{version}.dist-info"))
    old.rename(site / f"{package}-{version}.dist-info")


def vendor_packages(site: Path, folder: Path) -> None:
    "Unpack torch and what it imports, as the vendor's own build of them."
    for name in (
        "torch",
        "numpy",
        "sympy",
        "mpmath",
        "networkx",
        "jinja2",
        "markupsafe",
        "fsspec",
        "filelock",
        "typing_extensions",
        "setuptools",
    ):
        with zipfile.ZipFile(
            next(path for path in folder.glob("*.whl") if path.name.lower().startswith(f"{name}-"))
        ) as wheel:
            wheel.extractall(site)
    revision(site, "torch", VENDOR)
    revision(site, "filelock", "3.0.12")  # a package of the vendor's that the lock wants in another version
    said = site / "torch" / "version.py"
    said.write_text(re.sub(r"(?m)^__version__ = .*$", f"__version__ = {SPOKEN!r}", said.read_text()))


# The store and the images

ENTRY = '#!/bin/sh\necho "entry point of the vendor" >&2\nexec "$@"\n'


class Workshop:
    "A podman with its store and settings in one folder, and the images made in it."

    def __init__(self, folder: Path):
        self.folder = folder
        limits = ", ".join(f'"{name}={min(1024, hard)}:{min(1024, hard)}"' for name, hard in self._limits().items())
        (folder / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits=[{limits}]\nnetns="none"\n[engine]\nruntime="runc"\ncgroup_manager="cgroupfs"\n'
        )
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver="overlay"\ngraphroot="{folder}/root"\nrunroot="{folder}/run"\n'
        )
        self.variables = {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }
        self.wheels = folder / "wheels"
        self.seconds: dict[str, float] = {}

    @staticmethod
    def _limits() -> dict[str, int]:
        import resource

        hard = {
            "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            "nproc": resource.getrlimit(resource.RLIMIT_NPROC)[1],
        }
        return {name: 1024 if value == resource.RLIM_INFINITY else value for name, value in hard.items()}

    def podman(self, *words: str | Path, **options) -> str:
        "What podman prints."
        return call("podman", *words, env=os.environ | self.variables, **options)

    @contextmanager
    def timed(self, name: str):
        "Write down how long something took."
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began

    def base(self) -> None:
        "Make the base image. Raises `Missing` if the mirror or the package index does not answer."
        mirror, release, components = sources()
        system = self.folder / "system"
        with self.timed("system"):
            try:
                call(
                    "mmdebstrap",
                    "--quiet",
                    "--variant=minbase",
                    "--include=python3,python3-venv,python3-pip,ca-certificates",
                    release,
                    system,
                    f"deb {mirror} {release} {components}",
                )
            except RuntimeError as e:
                raise Missing(f"no system from the mirror of this machine: {str(e).strip().splitlines()[-1]}") from e
        said = call("chroot", system, "python3", "-c", "import sys; print(*sys.version_info[:3])")
        python = tuple(map(int, said.split()))
        if python < (3, 11):
            raise Missing(f"the release's Python is {'.'.join(map(str, python))}; 3.11 or later is needed")
        with self.timed("wheels"):
            wheels(self.folder, python)
        with self.timed("base"):
            vendor_packages(system / "usr/local/lib" / ("python%d.%d" % python[:2]) / "dist-packages", self.wheels)
            call("chroot", system, "useradd", "-l", "-m", "-u", "1000", "somebody")
            write_atomic(system / "opt/nvidia/nvidia_entrypoint.sh", ENTRY).chmod(0o755)
            write_atomic(system / "etc/pip/constraint.txt", "numpy==1.26.4\n")
            (system / "workspace").mkdir()
            changes = (
                "ENV PIP_BREAK_SYSTEM_PACKAGES=1",
                "ENV PIP_CONSTRAINT=/etc/pip/constraint.txt",
                "ENV CUDA_VERSION=13.4.0.1",
                'ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh"]',
                "WORKDIR /workspace",
            )
            with subprocess.Popen(
                [
                    "tar",
                    "-C",
                    system,
                    "--exclude=./dev/*",
                    "--exclude=./proc/*",
                    "--exclude=./var/cache/apt",
                    "-c",
                    ".",
                ],
                stdout=subprocess.PIPE,
            ) as packed:
                self.podman(
                    "import",
                    *(word for change in changes for word in ("--change", change)),
                    "-",
                    BASE,
                    stdin=packed.stdout,
                )
            shutil.rmtree(system)

    def image(self) -> None:
        "Build `docker/Dockerfile` on the base, without a network."
        extra = (
            "--network=none",
            "--volume",
            f"{self.wheels}:/wheels:ro",
            "--build-arg",
            "PIP_EXTRA=--no-index --find-links=/wheels --no-compile",
        )
        with self.timed("image"):
            self.podman(*build_line("podman", BASE, IMAGE, extra=extra)[1:])

    def inside(self, *words: str, image: str = IMAGE) -> str:
        "What a program in a fresh container prints."
        return self.podman("run", "--rm", "--init", "--entrypoint=", image, *words).strip()

    def containers(self) -> list[str]:
        "Names of the containers that there are, stopped ones included."
        return self.podman("ps", "--all", "--format", "{{.Names}}").split()

    def close(self, keep: bool) -> None:
        "Remove the containers, and images that nothing goes on from; all of the folder, if it is not kept."
        subprocess.run(["podman", "rm", "--all", "--force"], env=os.environ | self.variables, capture_output=True)
        words = ("image", "prune", "--force") if keep else ("rmi", "--all", "--force")
        subprocess.run(["podman", *words], env=os.environ | self.variables, capture_output=True)
        for mount in ("root/overlay", "root"):
            subprocess.run(["umount", self.folder / mount], capture_output=True)
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def ingredients() -> str:
    "A hash of what a base is made of: this machine's release, the locked requirements, and the recipe."
    recipe = (inspect.getsource(step) for step in (Workshop.base, wheels, vendor_packages, revision))
    texts = (*sources(), (root() / "requirements.lock").read_text(), VENDOR, SPOKEN, ENTRY, *recipe)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def shelf() -> tuple[Path, Lock | None]:
    """The folder to work in, and the lock of one that is kept: one that was made of something else is removed first.
    While another process works there it is a temporary one. Raises `ConfigError` for a folder that is not ours."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hrm"
    lock = None
    if named := os.environ.get("HRM_WORKSHOP", cache / "container"):
        folder = Path(named)
        with suppress(ConfigError):  # in use
            lock = Lock.take(folder, "used")
    if lock is None:
        return Path(tempfile.mkdtemp(prefix="hrm-container-")), None
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "storage.conf").is_file():
        lock.free()
        raise ConfigError(f"HRM_WORKSHOP: found {folder}, a folder of something else; allowed: a new one")
    made_of = folder / "ingredients"
    if folder.exists() and not (made_of.is_file() and made_of.read_text() == ingredients()):
        Workshop(folder).close(keep=False)
    folder.mkdir(parents=True, exist_ok=True)
    return folder, lock


@contextmanager
def workshop():
    "A workshop with both images made. Raises `Missing`."
    check()
    folder, lock = shelf()
    shop = Workshop(folder)
    try:
        if not (folder / "ingredients").exists():
            shop.base()
            write_atomic(folder / "ingredients", ingredients())
        shop.image()
        yield shop
    finally:
        shop.close(keep=lock is not None and (folder / "ingredients").exists())
        if lock is not None:
            lock.free()


# The comparison


def stages(project: Path, shop: Workshop | None, threads: int = 1) -> None:
    "Reproduce the compared stages and the environment in a copy of the project: in the container with a workshop, else on the host."
    mine = {
        k: v
        for k, v in os.environ.items()
        if k not in ("HRM_ROOT", "PYTHONHASHSEED", "IN_TEST") and not k.startswith("DVC_")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = (
        mine
        | {"PATH": path, "OMP_NUM_THREADS": str(threads)}
        | (shop.variables | SETTINGS if shop else {"HRM_RUNNER": "host"})
    )
    names = [f"{stage}@smoke" for stage in ("environment", *STAGES)]
    call(sys.executable, "-m", "dvc", "repro", *names, cwd=project, env=variables)


def read(project: Path, stage: str, file: str = "metrics.json") -> bytes:
    return (project / "reports" / "smoke" / stage / file).read_bytes()


def compare(inside: Path, outside: Path) -> dict[str, bool]:
    "Stage -> whether the bytes of metrics.json are the same."
    return {stage: read(inside, stage) == read(outside, stage) for stage in STAGES}


def copies(folder: Path) -> list[Path]:
    "Two copies of the project's files, each a project of its own."
    named = call("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=root()).split("\0")
    made = [folder / name for name in ("inside", "outside")]
    for copy in made:
        for name in filter(None, named):
            if (root() / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root() / name, copy / name)
        call("git", "init", "-q", "-b", "main", ".", cwd=copy)
    return made


def record(shop: Workshop, equal: dict[str, bool], inside: Path, seconds: dict[str, float]) -> dict:
    "What is kept of it, the figure included."
    from hrm.core.device import machine, machine_name

    return {
        "machine": machine(),
        "container": json.loads(read(inside, "environment"))["machine"],
        "metrics_equal": equal,
        "seconds": {name: round(value, 1) for name, value in (shop.seconds | seconds).items()},
        "engine": shop.podman("--version").strip(),
        "runtime": call("runc", "--version").splitlines()[0],
        "figures": {
            "container.metrics_equal": {
                "value": int(all(equal.values())),
                "unit": "",
                "low": None,
                "high": None,
                "n": len(equal),
                "stage": "benchmarks/container",
                "profile": "smoke",
                "machine": machine_name(),
            }
        },
    }


def main(out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/container.json") -> None:
    "Build the image, run the smoke stages in it and on the host, compare."
    try:
        with workshop() as shop, tempfile.TemporaryDirectory() as scratch:
            print(
                "images made:", ", ".join(f"{name} {value:.0f} s" for name, value in shop.seconds.items()), flush=True
            )
            inside, outside = copies(Path(scratch))
            seconds = {}
            for name, project, where in (("host", outside, None), ("container", inside, shop)):
                began = time.perf_counter()
                stages(project, where)
                seconds[f"stages, {name}"] = time.perf_counter() - began
            equal = compare(inside, outside)
            kept = record(shop, equal, inside, seconds)
    except Missing as e:
        raise SystemExit(f"container: {e}") from e
    print("\n".join(f"{stage}: metrics.json {'identical' if same else 'DIFFERENT'}" for stage, same in equal.items()))
    print(write_atomic(root() / out, json.dumps(kept, indent=1, sort_keys=True) + "\n"))
    raise SystemExit(0 if all(equal.values()) else 1)


if __name__ == "__main__":
    typer.run(main)
