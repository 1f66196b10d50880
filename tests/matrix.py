"""The quick tests on sets of versions: the oldest that are claimed, and the newest there are.

    python -m tests.matrix                      # every set
    python -m tests.matrix oldest               # one
    python -m tests.matrix oldest --with-torch  # torch's own version too: gigabytes

A set is an environment of its own over the one that runs this, which lends it everything that the
set does not name, torch first of all. So `oldest` here says what the oldest transformers,
accelerate, peft and safetensors do with this torch; the oldest torch takes --with-torch and a
download of gigabytes. The oldest versions are those of pyproject.toml.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from sysconfig import get_path

ROOT = Path(__file__).resolve().parents[1]
# What they have to do with other people's packages, and no second process.
QUICK = [
    "tests/test_optimizer.py",
    "tests/test_peft.py",
    "tests/ledger/test_export.py",
    "tests/integrations/test_trainer.py",
    "tests/integrations/test_accelerate.py",
    "tests/integrations/test_finetune.py",
]
MEMBERS = ("transformers", "accelerate", "peft", "safetensors")
SETS = ("oldest", "newest")


@dataclass(frozen=True)
class Ran:
    """What came of a set."""

    name: str
    versions: dict[str, str]
    outcome: str
    passed: bool


def floors() -> dict[str, str]:
    """The oldest version of each package that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    found = (re.match(r"([\w-]+)>=([\w.]+)", line) for line in lines)
    return {m[1]: m[2] for m in found if m}


def wanted(name: str, with_torch: bool) -> Iterator[str]:
    """What pip is asked for."""
    oldest = floors()
    for member in (*MEMBERS, *(["torch"] if with_torch else [])):
        yield f"{member}=={oldest[member]}" if name == "oldest" else member


def run(name: str, options: argparse.Namespace) -> Ran:
    """Make a set's environment and run the tests in it."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin" / "python"
        venv.create(folder, with_pip=True)
        inside = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        site = Path(folder) / "lib" / inside / "site-packages"
        if not options.alone:  # what stands in .pth files there counts too: an editable install
            lent = f"import site; site.addsitedir({get_path('purelib')!r})\n"
            (site / "zz_lent.pth").write_text(lent)
        index = ["--extra-index-url", options.index] if options.index else []
        pip = [python, "-m", "pip", "install", "--quiet", "--upgrade", *index]
        asked = [*wanted(name, options.with_torch)]
        asked += ["-e", f"{ROOT}[test]"] if options.alone else []
        installed = subprocess.run([*pip, *asked], capture_output=True, text=True)
        if installed.returncode:
            why = [line for line in installed.stderr.splitlines() if line.startswith("ERROR")]
            return Ran(name, {}, f"not installed: {' '.join(why)[:300]}", False)
        return tested(name, python, options.tests or QUICK)


def tested(name: str, python: Path, tests: list[str]) -> Ran:
    """Run the tests in an environment; warnings are no errors, as other versions have others."""
    names = ("torch", *MEMBERS)
    ask = "import json, sys; from importlib.metadata import version; "
    ask += "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    said = subprocess.run(
        [python, "-c", ask, *names], capture_output=True, text=True, env=environment
    )
    command = [python, "-m", "pytest", "-q", "-m", "not distributed", "-W", "default", "--tb=line"]
    done = subprocess.run(
        [*command, *tests], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    for line in lines if done.returncode else ():
        if line.startswith(("FAILED", "ERROR", "E ")):
            print(f"  {name}: {line}", flush=True)
    return Ran(name, json.loads(said.stdout), lines[-1].strip("= "), done.returncode == 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)} (all)")
    parser.add_argument("--with-torch", action="store_true", help="torch's version too")
    parser.add_argument("--alone", action="store_true", help="lend nothing: install everything")
    parser.add_argument("--index", help="one more index for pip")
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="(default: the quick ones)")
    options = parser.parse_args()
    if unknown := set(options.sets) - {*SETS}:
        parser.error(f"no set {sorted(unknown)[0]!r}: there are {', '.join(SETS)}")
    lent = "nothing is lent" if options.alone else f"torch {version('torch')} is lent"
    print(f"Python {sys.version.split()[0]}, {lent}", flush=True)
    ran = [run(name, options) for name in options.sets or SETS]
    for one in ran:
        versions = ", ".join(f"{name} {said}" for name, said in one.versions.items())
        print(f"{one.name:8} {one.outcome}\n{'':8} {versions}")
    if not options.with_torch:
        print(f"not run: torch {floors()['torch']}, the oldest claimed; it takes --with-torch")
    sys.exit(not all(one.passed for one in ran))


if __name__ == "__main__":
    main()
