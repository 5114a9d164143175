"""A run's folder: what is there is kept unless it is to be resumed or overwritten."""

import subprocess
import sys

import pytest

from finetune.config import QuickstartConfig, read
from finetune.folder import METRICS, check_folder, start_folder
from mmlm import cli

CONFIG = QuickstartConfig()


@pytest.mark.parametrize("file", ["checkpoints", METRICS, "model.safetensors"])
def test_a_run_that_is_there_is_refused(file, tmp_path):
    run = tmp_path / "run"
    check_folder(run, resume=False, overwrite=False)
    start_folder(CONFIG, run)
    check_folder(run, resume=False, overwrite=False)  # it was stopped before it made anything
    (run / file).write_text("{}\n")
    with pytest.raises(FileExistsError, match=f"{run}: a run is there already; --resume.*--overwrite.*--run NAME"):
        check_folder(run, resume=False, overwrite=False)
    check_folder(run, resume=True, overwrite=False)
    check_folder(run, resume=False, overwrite=True)
    assert (run / file).read_text() == "{}\n"
    with pytest.raises(ValueError, match=r"--resume goes on .* --overwrite starts it over: give one"):
        check_folder(run, resume=True, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("there", ["README.md", "report.html", "notes"])
def test_a_folder_that_is_no_runs_is_left_alone(there, overwrite, tmp_path):
    """As the checkout, with --run ."""
    (tmp_path / there).write_text("mine")
    for folder in (tmp_path, tmp_path / there):
        with pytest.raises(FileExistsError, match=f"^{folder}: something else is there; --run NAME makes the run in a"):
            check_folder(folder, resume=False, overwrite=overwrite)


def test_where_no_run_is_none_is_resumed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=f"{tmp_path}: no run is there to go on with; start one without --resume"):
        check_folder(tmp_path, resume=True, overwrite=False)
    assert cli.main(["quickstart", "--run", str(tmp_path), "--resume"]) == 1


def test_overwriting_removes_what_a_run_made_and_nothing_else(tmp_path):
    for name in (METRICS, "trouble.jsonl", "model.safetensors", "report.json", "samples.html", "notes.txt"):
        (tmp_path / name).write_text("old")
    for name in ("checkpoints", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("old")
    start_folder(QuickstartConfig(seed=3), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "config.yaml"}
    assert read(QuickstartConfig(), tmp_path).seed == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "a run is there already"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--resume", "--train.steps=3"], f"--train.steps is {CONFIG.train.steps} in"),
    ],
)
def test_what_is_refused_is_refused_before_torch_is_loaded(options, message, tmp_path):
    start_folder(CONFIG, tmp_path)
    (tmp_path / METRICS).write_text("{}\n")
    words = ["quickstart", f"--run={tmp_path}", *options]
    code = f"import sys; from mmlm.cli import main; assert main({words}) == 1; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60)
    assert done.returncode == 0 and message in done.stderr and done.stderr.count("\n") == 1
