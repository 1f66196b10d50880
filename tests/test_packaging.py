"""What is installed is what is in the tree, and every tool runs at the version the project pins."""

import ast
import email
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.matrix import MEMBERS, SETS, floors

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS: dict[str, Any] = PYPROJECT["tool"]["setuptools"]


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def pins(text: str) -> list[tuple[str, str]]:
    """Every ``name==version`` of a file, the names normalised as package indexes do it."""
    found = re.findall(r"^(?!\s*#).*?\b([A-Za-z][\w.-]*)==([\w.+!-]+)", text, flags=re.MULTILINE)
    return [(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in found]


def packages_in_tree() -> set[str]:
    """The packages under both roots, by the names they are installed under."""
    roots = {ROOT / "torch_xgb": "torch_xgb", ROOT / "integrations": "torch_xgb.integrations"}
    return {
        ".".join([package, *path.parent.relative_to(folder).parts])
        for folder, package in roots.items()
        for path in folder.rglob("__init__.py")
    }


def installed_folder(package: str) -> Path:
    """Where a listed package's files come from."""
    head, *rest = package.split(".")
    for depth in range(len(rest), -1, -1):
        mapped = SETUPTOOLS["package-dir"].get(".".join([head, *rest[:depth]]))
        if mapped is not None:
            return ROOT.joinpath(mapped, *rest[depth:])
    raise AssertionError(f"{package} has no entry in package-dir")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the tree keeps neither build/ nor egg-info of it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CITATION.cff"):
        shutil.copy(ROOT / name, source)
    for name in ("torch_xgb", "integrations"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    run = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(source)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = folder.glob("*.whl")
    return path


def metadata_of(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_packages_are_those_of_the_tree() -> None:
    assert set(SETUPTOOLS["packages"]) == packages_in_tree()


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {
        path.parent for top in ("torch_xgb", "integrations") for path in (ROOT / top).rglob("*.py")
    }
    assert {installed_folder(package) for package in SETUPTOOLS["packages"]} == folders


def test_wheel_holds_every_module_under_its_installed_name(wheel: Path) -> None:
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package in SETUPTOOLS["packages"]
        for path in installed_folder(package).glob("*.py")
    }
    assert {"torch_xgb/__init__.py", "torch_xgb/integrations/__init__.py"} <= expected
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected | {"torch_xgb/py.typed"}


def test_wheel_asks_for_torch_alone(wheel: Path) -> None:
    required = metadata_of(wheel).get_all("Requires-Dist") or []
    unconditional = [line for line in required if "extra ==" not in line]
    assert unconditional == PYPROJECT["project"]["dependencies"] == ["torch>=2.9"]


def test_wheel_names_its_version_and_licence(wheel: Path) -> None:
    metadata = metadata_of(wheel)
    tree = ast.parse((ROOT / "torch_xgb" / "__init__.py").read_text(encoding="utf-8"))
    (version,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert metadata["Version"] == version
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]


def test_wheel_imports_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import torch_xgb.integrations as x; print(x.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path.parent,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(run.stdout.strip()) == tmp_path / "torch_xgb" / "integrations" / "__init__.py"


def test_sdist_holds_what_the_wheel_is_built_of(wheel: Path, tmp_path: Path) -> None:
    code = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    source = wheel.parent / "source"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=source, check=True, capture_output=True
    )
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in SETUPTOOLS["packages"]
        for path in installed_folder(package).glob("*.py")
    }
    rest = {"torch_xgb/py.typed", "pyproject.toml", "README.md", "LICENSE", "CITATION.cff"}
    assert modules | rest <= names
    assert not any(name.startswith("tests/") for name in names)


def test_there_is_one_version() -> None:
    version = re.search(r'__version__ = "(.+)"', read("torch_xgb/__init__.py"))
    cited = re.search(r"^version: (.+)$", read("CITATION.cff"), flags=re.MULTILINE)
    assert version and cited and version[1] == cited[1]
    assert f"## [{version[1]}]" in read("CHANGELOG.md")


def test_reports_of_faults_ask_for_the_environment() -> None:
    for name in ("fault", "wish"):
        form = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{name}.yml"))
        asked = {field["id"]: field for field in form["body"]}
        assert "torch-xgb env" in asked["environment"]["attributes"]["description"]


def test_workflows_run_what_a_desk_runs() -> None:
    jobs = {
        name: yaml.safe_load(read(f".github/workflows/{name}.yml"))["jobs"]
        for name in ("gate", "versions")
    }
    steps = [s.get("run") for one in jobs.values() for job in one.values() for s in job["steps"]]
    assert {".ci/run", "make dist"} <= set(steps)
    sets = {one["set"] for one in jobs["versions"]["versions"]["strategy"]["matrix"]["include"]}
    assert sets == set(SETS)
    assert floors().keys() >= {"torch", *MEMBERS}


def test_a_strictly_typed_project_reads_its_types() -> None:
    """In the gate's own cache: a few seconds. `make dist` has it read from an installed wheel."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--exclude", "torch_xgb/integrations", "tests/consumer.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_constraints_pin_each_package_once() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    names = [name for name, _ in pins("\n".join(wanted))]
    assert len(names) == len(wanted) == len(set(names))


@pytest.mark.parametrize("file", [".pre-commit-config.yaml", "pyproject.toml"])
def test_pins_agree_with_constraints(file: str) -> None:
    constraints = dict(pins((ROOT / "constraints.txt").read_text(encoding="utf-8")))
    found = pins((ROOT / file).read_text(encoding="utf-8"))
    assert found
    assert [(name, constraints.get(name)) for name, _ in found] == found


def test_hooks_cover_the_tools_of_the_gate() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    entries = re.findall(r"entry: (.*)", hooks)
    assert [entry.split(" --")[0] for entry in entries] == [
        "ruff check",
        "ruff format",
        ".venv/bin/mypy torch_xgb integrations",
    ]
    assert dict(pins(hooks)).keys() == {"ruff"}
