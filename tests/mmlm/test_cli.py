"""The command line: what it lists, what it costs, what it says when something goes wrong."""

import argparse
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlm import cli

ROOT = Path(__file__).parents[2]

# Frozen: whoever changes a line here changes what people have in their scripts.
COMMAND_LINE = """\
mmlm ask IMAGE QUESTION --model --max-new-tokens --ocr
mmlm caption IMAGE... --model --max-new-tokens --ocr
mmlm data check DATA... --split --format --images --annotations --subset --prompt --urls --model --decoder --near \
--json
mmlm data prune DATA OUT --split --format --images --annotations --subset --prompt --urls --near --images-alone \
--clip --least
mmlm eval caption MODEL DATA --split --format --images --annotations --subset --prompt --urls --limit --seed \
--max-new-tokens --batch --shots --shots-from --shots-split --shots-by --best-of --verifier --temperature --top-p \
--rank --choices --out --resume --overwrite --require-grounded --clip
mmlm eval vqa MODEL DATA --split --format --images --annotations --subset --prompt --urls --limit --seed \
--max-new-tokens --batch --shots --shots-from --shots-split --shots-by --best-of --verifier --temperature --top-p \
--rank --choices --out --resume --overwrite --require-grounded
mmlm eval compare A B --out
mmlm eval zener MODEL --k --cards --limit --seed --size --out
mmlm finetune CONFIG --run --resume --overwrite --steps --log_every --save_every --keep --trouble --spike --broken \
--recompute --compile --trackers --calibrate --words --optim.lr --optim.gate_lr --optim.width --optim.weight_decay \
--optim.beta2 --optim.warmup --optim.final --optim.clip --batch.images --batch.per_image --batch.balance \
--batch.passes --data --held_out --epochs --longest --seed --cache_gb --model.decoder --model.vision --model.adapter \
--model.every --model.start --model.layers --model.tokens --model.detail --model.attend --model.image_last \
--model.ff_factor --model.system --model.lora --model.unfreeze --model.ocr --model.settings --model.decoder_kwargs \
--model.tensor_parallel --denoise.share --denoise.r --denoise.x --denoise.s --score.every --score.by --score.take \
--score.samples --score.cards
mmlm info [MODEL] --vision --tokens --every --start --kv-heads
mmlm quickstart --run --resume --overwrite --vqa_images --redrawn --vqa_test --redrawn_test --shapes_test --scenes \
--scenes_test --blocks_from --captions_per_image --vqa_share --seed --train.steps --train.log_every \
--train.save_every --train.keep --train.trouble --train.spike --train.broken --train.recompute --train.compile \
--train.trackers --train.calibrate --train.words --train.optim.lr --train.optim.gate_lr --train.optim.width \
--train.optim.weight_decay --train.optim.beta2 --train.optim.warmup --train.optim.final --train.optim.clip \
--train.batch.images --train.batch.per_image --train.batch.balance --train.batch.passes
mmlm upcycle SRC DST --experts --top-k
"""

TOY_VERBS = '''
import errno, sys

def toy(parser):
    """Plays with blocks.

    At length."""
    parser.add_argument("what", nargs="?", default="play")
    parser.add_argument("--colour")
    parser.set_defaults(run=lambda args: globals()[args.what](args))

def play(args): print("played", args.colour)
def three(args): return 3
def value(args): raise ValueError("the field 'colour' is 'mauve',\\n  but must be red")
def missing(args): open("no-such-toy.txt")
def bare(args): raise OSError("the hub does not answer")
def full(args): raise OSError(errno.ENOSPC, "No space left on device", "runs/toy/model.safetensors")
def rust(args): raise Exception('Error while serializing: I/O error: No space left on device (os error 28)')
def absent(args): import no_such_library
def memory(args): raise MemoryError
def gpu(args):
    import torch
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\\n GPU 0 is full.")
def interrupt(args): raise KeyboardInterrupt
def stop(args): raise KeyboardInterrupt("--resume goes on with it")
def nan(args): raise FloatingPointError("the loss at step 3 is not a number")
def bug(args): raise KeyError("colour")
def shout(args): sys.stdout.writelines("toy\\n" for _ in range(100_000))
nothing = 7
'''

TOY_ENTRY_POINTS = """
[mmlm.commands]
toy = toy_verbs:toy
unloadable = no_such_toys:toy
unnamed = toy_verbs:no_such_verb
uncallable = toy_verbs:nothing
caption = toy_verbs:toy
"""


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A folder on sys.path in which another distribution, `toys`, adds verbs, three of them broken."""
    info = tmp_path / "toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(TOY_ENTRY_POINTS)
    (tmp_path / "toy_verbs.py").write_text(TOY_VERBS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_verbs", raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """Restores, after the test, the variables that `main` sets."""
    for name in cli.ENVIRONMENT:
        monkeypatch.setenv(name, cli.ENVIRONMENT[name])


def mmlm(*words, **options):
    command = [sys.executable, "-m", "mmlm", *words]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=60, **options)


def line_of(action):
    """An argument in one word: IMAGE, IMAGE..., [IMAGE] or --option."""
    if action.option_strings:
        return action.option_strings[-1]
    name = str(action.metavar or action.dest).upper()
    return {"+": f"{name}...", "*": f"[{name}...]", "?": f"[{name}]", argparse.REMAINDER: "..."}.get(action.nargs, name)


def lines_of(name, parser):
    """A verb's line, or one for each of the verbs that it has itself."""
    actions = parser._actions[1:]  # without -h
    if actions and isinstance(actions[0], argparse._SubParsersAction):
        return [line for inner, its in actions[0].choices.items() for line in lines_of(f"{name} {inner}", its)]
    return [" ".join([name, *map(line_of, actions)])]


def test_command_line_is_frozen():
    lines = []
    for name, entry in cli.find_verbs().items():
        if entry.dist.name == cli.DISTRIBUTION:
            lines += lines_of(f"mmlm {name}", cli.verb_parser(entry))
    assert "\n".join(lines) + "\n" == COMMAND_LINE


def test_help_lists_the_verbs_without_torch():
    code = """
        import sys
        from mmlm.cli import main
        assert main(["--help"]) == 0
        heavy = {"torch", "transformers", "huggingface_hub", "numpy", "PIL"} & sys.modules.keys()
        assert not heavy, heavy
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    for verb in ("ask", "caption", "data", "eval", "info", "quickstart", "upcycle"):
        assert f"\n  {verb} " in done.stdout
    assert "broken" not in done.stdout


def test_runs_as_a_module():
    done = mmlm("--version")
    assert (done.returncode, done.stdout) == (0, "mmlm 0.1.0\n")


def test_no_verb_is_misuse(capsys):
    assert cli.main([]) == 2
    assert "usage: mmlm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("quikstart", "mmlm: no verb 'quikstart', did you mean 'quickstart'?; mmlm --help lists what there is\n"),
        ("xyzzy", "mmlm: no verb 'xyzzy'; mmlm --help lists what there is\n"),
        ("--vresion", "mmlm: no option '--vresion'; mmlm --help lists what there is\n"),
    ],
)
def test_unknown_verb(word, answer, capsys):
    assert cli.main([word]) == 2
    assert capsys.readouterr() == ("", answer)


def test_other_packages_add_verbs(toys, capsys):
    assert cli.main(["toy", "--colour", "red"]) == 0
    assert cli.main(["toy", "three"]) == 3
    assert capsys.readouterr().out == "played red\n"


def test_other_packages_replace_none_of_ours(toys):
    assert cli.find_verbs()["caption"].dist.name == cli.DISTRIBUTION


def test_broken_verbs_leave_the_others_alone(toys, capsys):
    assert cli.main(["--help"]) == 0
    listing = capsys.readouterr().out
    assert "  toy         Plays with blocks.\n" in listing
    assert "  unloadable  broken (no_such_toys:toy): ModuleNotFoundError: No module named 'no_such_toys'\n" in listing
    assert "  unnamed     broken (toy_verbs:no_such_verb): AttributeError: " in listing
    assert "  uncallable  broken (toy_verbs:nothing): TypeError: not a function\n" in listing
    assert cli.main(["unloadable"]) == 1
    assert capsys.readouterr().err.startswith("mmlm: the verb 'unloadable' is broken (no_such_toys:toy): ")


def test_help_of_a_verb_is_its_docstring(toys, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["toy", "--help"])
    assert "Plays with blocks.\n\nAt length.\n" in capsys.readouterr().out


def test_unknown_argument_of_a_verb(toys, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["toy", "--color=red"])
    complaint = "mmlm: unknown argument '--color', did you mean '--colour'?; mmlm toy --help lists what there is\n"
    assert capsys.readouterr() == ("", complaint)


ERRORS = {
    "value": (1, "the field 'colour' is 'mauve', but must be red"),
    "missing": (1, "no-such-toy.txt: No such file or directory"),
    "bare": (1, "the hub does not answer"),
    "full": (1, "no space left on the disk for runs/toy/model.safetensors: make some, then run this again"),
    "absent": (1, "No module named 'no_such_library'; pip install -e \".[quickstart]\" brings all that mmlm uses"),
    "memory": (1, "out of memory"),
    "gpu": (1, "CUDA out of memory. Tried to allocate 9 GiB. GPU 0 is full."),
    "nan": (1, "the loss at step 3 is not a number"),
    "interrupt": (130, "interrupted: what was finished is kept"),
    "stop": (130, "interrupted: what was finished is kept; --resume goes on with it"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors_are_one_line(what, toys, capsys):
    status, message = ERRORS[what]
    assert cli.main(["toy", what]) == status
    assert capsys.readouterr() == ("", f"mmlm: {message}\n")


def test_a_full_disk_is_known_by_its_words_too(toys, capsys):
    assert cli.main(["toy", "rust"]) == 1
    assert capsys.readouterr().err.startswith("mmlm: no space left on the disk for Error while serializing")


@pytest.mark.parametrize(
    "words", [["--debug", "toy", "value"], ["toy", "--debug", "value"], ["toy", "value", "--debug"]]
)
def test_debug_shows_the_traceback(words, toys, capsys):
    assert cli.main(words) == 1
    assert "Traceback (most recent call last):\n" in capsys.readouterr().err


def test_a_bug_is_raised(toys):
    with pytest.raises(KeyError, match="colour"):
        cli.main(["toy", "bug"])


def test_a_reader_that_goes_away_hears_nothing(toys):
    command = [sys.executable, "-c", "import sys, mmlm.cli; sys.exit(mmlm.cli.main(['toy', 'shout']))"]
    path = {"PYTHONPATH": f"{toys}:{ROOT}"}
    with subprocess.Popen(command, env=path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == "toy\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 141


@pytest.mark.parametrize("before", [None, "3000"])
@pytest.mark.parametrize("name", cli.ENVIRONMENT)
def test_the_environment_is_set_up_for_libraries_unless_it_is_already(name, before, toys, monkeypatch, capsys):
    monkeypatch.delenv(name) if before is None else monkeypatch.setenv(name, before)
    cli.main(["toy"])
    assert cli.os.environ[name] == (before or cli.ENVIRONMENT[name])


@given(st.lists(st.sampled_from(["--debug", "--", "a", "-b"])))
def test_a_flag_is_taken_wherever_it_stands_before_the_dashes(words):
    end = words.index("--") if "--" in words else len(words)
    left = list(words)
    assert cli.take_flag(left, "--debug") == ("--debug" in words[:end])
    assert left == [word for word in words[:end] if word != "--debug"] + words[end:]


def test_what_to_type_is_found_where_it_is_not_on_the_path(tmp_path, monkeypatch):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "mmlm").touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.command() == "env/mmlm"
    monkeypatch.setenv("PATH", str(tmp_path / "env"))
    assert cli.command() == "mmlm"
