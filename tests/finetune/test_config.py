"""Settings: said in YAML or on the command line, refused where they are not known, written down as they were used."""

from dataclasses import asdict, dataclass, field, fields, is_dataclass

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import QuickstartConfig, TrainConfig, nested, resolve, write
from finetune.options import docstrings, leaves

NAMES = [name for name, _ in leaves(QuickstartConfig())]


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
        ({"inner": {"name": 3}}, r"config field 'inner\.name' takes str, not 3"),
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


@pytest.mark.parametrize(
    "words",
    [["--inner.rate", "1e-4", "--steps", "9"], ["--steps=9", "--inner.rate=1e-4"], ["--inner.rate=1", "--steps=9"]],
)
def test_overrides_are_dotted(words):
    config = resolve(Outer(), nested(words))
    assert config.steps == 9 and config.inner.rate in (1e-4, 1.0)


def test_the_last_override_counts():
    assert nested(["--steps=1", "--steps", "2"]) == {"steps": 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps=3"], r"'steps=3': overrides are written --field\.name value"),
        (["--"], r"'--': overrides are written --field\.name value"),
        (["--steps"], r"--steps: its value is missing"),
        (["--steps", "["], r"--steps: '\[' is no value"),
        (["--inner=3", "--inner.rate=1"], r"'inner' was given the value 3 before"),
    ],
)
def test_overrides_of_another_form_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        nested(words)


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
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    config = resolve(QuickstartConfig(), nested([f"--{name}={value!r}" for name, value in given.items()]))
    write(config, path)
    assert resolve(QuickstartConfig(), yaml.safe_load(path.read_text())) == config
    assert {name: value for name, value in leaves(config) if name in given} == given


@pytest.mark.parametrize("name", NAMES)
def test_every_field_takes_its_own_default(name):
    default = dict(leaves(QuickstartConfig()))[name]
    assert resolve(QuickstartConfig(), nested([f"--{name}={default}"])) == QuickstartConfig()


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


@pytest.mark.parametrize("field", ["vqa_images", "train.steps", "train.batch.images"])
def test_numbers_that_make_no_sense_are_refused(field):
    with pytest.raises(ValueError, match=rf"'{field}' is at least 1, not 0"):
        resolve(QuickstartConfig(), nested([f"--{field}", "0"]))
