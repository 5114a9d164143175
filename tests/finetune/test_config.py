"""Settings: said in YAML or on the command line, refused where they are not known, written down as they were used."""

import math
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import (
    NAME,
    QuickstartConfig,
    TrainConfig,
    check_resumable,
    inside,
    leaves,
    nested,
    read,
    resolve,
    write,
)
from finetune.options import docstrings
from finetune.run_config import RunConfig

FIELDS = [name for name, _ in leaves(QuickstartConfig())]


@dataclass
class Inner:
    rate: float = 0.5
    name: str = "a"
    on: bool = False


@dataclass
class Outer:
    steps: int = 3
    inner: Inner = field(default_factory=Inner)


def test_given_values_take_the_place_of_defaults():
    config = resolve(Outer(), {"steps": 7, "inner": {"rate": 0.25, "on": True}})
    assert config == Outer(7, Inner(0.25, "a", True))
    assert Outer() == Outer(3, Inner(0.5, "a", False))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"step": 7}, r"unknown config field 'step'; did you mean steps\?"),
        ({"inner": {"rat": 1}}, r"unknown config field 'inner\.rat'; did you mean inner\.rate\?"),
        ({"xyzzy": 1}, r"unknown config field 'xyzzy'; there are inner, steps"),
        ({"steps": "many"}, r"config field 'steps' takes int, not 'many'"),
        ({"steps": 1.5}, r"config field 'steps' takes int, not 1\.5"),
        ({"steps": True}, r"config field 'steps' takes int, not True"),
        ({"steps": None}, r"config field 'steps' takes int, not None"),
        ({"inner": 3}, r"config field 'inner' has fields of its own; 3 is not a mapping"),
        ({"inner": {"rate": "fast"}}, r"config field 'inner\.rate' takes float, not 'fast'"),
        ({"inner": {"rate": True}}, r"config field 'inner\.rate' takes float, not True"),
        ({"inner": {"name": 3.5}}, r"config field 'inner\.name' takes str, not 3\.5"),
        ({"inner": {"on": 1}}, r"config field 'inner\.on' takes bool, not 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        resolve(Outer(), given)


@pytest.mark.parametrize(("said", "rate"), [("1e-3", 0.001), (2, 2.0), (0.25, 0.25)])
def test_a_rate_may_be_written_as_people_write_it(said, rate):
    """YAML 1.1 takes 1e-3 for a string."""
    assert resolve(Outer(), {"inner": {"rate": said}}).inner.rate == rate


def test_a_word_may_look_like_a_number():
    assert resolve(Outer(), nested({"inner.name": "5"})).inner.name == "5"


def test_dotted_names_are_fields_of_fields():
    assert nested({"steps": "9", "inner.rate": "1.5", "inner.deeper.on": "true"}) == {
        "steps": 9,
        "inner": {"rate": 1.5, "deeper": {"on": True}},
    }
    assert resolve(Outer(), nested({"inner.rate": "1e-4", "steps": "9"})) == Outer(9, Inner(1e-4))


def test_what_is_no_value_is_refused():
    with pytest.raises(ValueError, match=r"--steps: '\[' is no value"):
        nested({"steps": "["})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(0, 2**31),
            "vqa_share": st.floats(0, 1),
            "train.steps": st.integers(1, 10**6),
            "train.optim.lr": st.floats(1e-9, 1),
            "train.batch.images": st.integers(1, 99),
        },
    )
)
def test_what_is_written_is_what_is_read(tmp_path_factory, given):
    folder = tmp_path_factory.mktemp("config")
    config = resolve(QuickstartConfig(), nested({name: repr(value) for name, value in given.items()}))
    write(config, folder)
    assert read(QuickstartConfig(), folder) == config
    assert {name: value for name, value in leaves(config) if name in given} == given


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_takes_its_own_default(name):
    default = dict(leaves(QuickstartConfig()))[name]
    assert resolve(QuickstartConfig(), nested({name: str(default)})) == QuickstartConfig()


def test_every_field_says_what_it_is():
    def check(config):
        said = docstrings(type(config))
        for entry in fields(config):
            value = getattr(config, entry.name)
            if is_dataclass(value):
                check(value)
            else:
                assert said.get(entry.name, "").endswith("."), f"{type(config).__name__}.{entry.name}"

    check(QuickstartConfig())


def test_one_config_is_not_another():
    """Nested configs are not shared between instances."""
    one, other = TrainConfig(), TrainConfig()
    one.optim.lr = 9.0
    assert asdict(other) == asdict(TrainConfig())


@pytest.mark.parametrize(
    ("field", "value", "interval"),
    [
        ("vqa_images", "0", "[1, inf)"),
        ("train.steps", "0", "[1, inf)"),
        ("seed", "-1", "[0, inf)"),
        ("vqa_share", "1.5", "[0, 1]"),
        ("vqa_share", ".nan", "[0, 1]"),
        ("vqa_share", "nan", "[0, 1]"),
        ("train.optim.lr", ".inf", "[0, inf)"),
        ("train.optim.gate_lr", "-5e-3", "[0, inf)"),
        ("train.optim.beta2", "2", "[0, 1)"),
        ("train.optim.beta2", "1", "[0, 1)"),
        ("train.optim.clip", "0", "(0, inf)"),
        ("train.optim.final", "7", "[0, 1]"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(field, value, interval):
    with pytest.raises(ValueError, match=re.escape(f"config field {field!r} is in {interval}, not")):
        resolve(QuickstartConfig(), nested({field: value}))


def test_every_number_says_which_make_sense():
    def check(config):
        for entry in fields(config):
            value = getattr(config, entry.name)
            if is_dataclass(value):
                check(value)
            elif type(value) in (int, float):
                assert inside(value, entry.metadata["in"]), entry.name

    check(QuickstartConfig())
    check(RunConfig())


@pytest.mark.parametrize(
    ("interval", "has", "lacks"),
    [
        ("[0, 1)", [0, 0.5], [-1, 1, math.nan]),
        ("(0, 1]", [0.5, 1], [0, 2, math.nan]),
        ("[1, inf)", [1, 10**400], [0, math.inf, math.nan]),
    ],
)
def test_intervals_are_those_of_mathematics(interval, has, lacks):
    assert all(inside(value, interval) for value in has)
    assert not any(inside(value, interval) for value in lacks)


def test_a_resumed_run_keeps_its_settings(tmp_path):
    write(resolve(QuickstartConfig(), {"train": {"steps": 9}, "scenes": 7}), tmp_path)
    resumed = read(QuickstartConfig(), tmp_path)
    resolve(resumed, nested({"train.log_every": "3", "train.save_every": "4", "scenes": "7"}))
    check_resumable(resumed, tmp_path)
    assert (resumed.train.steps, resumed.train.log_every) == (9, 3)
    resumed.train.optim.lr = 0.5
    with pytest.raises(
        ValueError,
        match=r"--train\.optim\.lr is 0\.001 in .*config\.yaml, and 0\.5 as .* give --train\.optim\.lr 0\.001,",
    ):
        check_resumable(resumed, tmp_path)


@pytest.mark.parametrize("name", ["redrawn", "train.steps", "train.optim.lr"])
def test_a_run_of_another_version_is_not_gone_on_with_in_todays_settings(name, tmp_path):
    write(QuickstartConfig(), tmp_path)
    path = tmp_path / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.strip().startswith(f"{name.rpartition('.')[2]}:")]
    assert len(kept) == len(lines) - 1
    path.write_text("".join(kept))
    with pytest.raises(ValueError, match=f"written by another version, it has no {name}; start over with --overwrite"):
        read(QuickstartConfig(), tmp_path)


@pytest.mark.parametrize("content", ["[", "3", "", "- a"])
def test_damaged_settings_are_told(content, tmp_path):
    (tmp_path / NAME).write_text(content)
    with pytest.raises(ValueError, match=r"config\.yaml: damaged; .*--overwrite"):
        read(QuickstartConfig(), tmp_path)


def test_where_no_settings_are_no_run_is(tmp_path):
    with pytest.raises(ValueError, match=r"config\.yaml: missing; put it there, or start over with --overwrite"):
        read(QuickstartConfig(), tmp_path / "nowhere")
