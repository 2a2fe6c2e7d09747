import itertools
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from configs.help import help_text
from configs.load import load, to_yaml


@dataclass(frozen=True, kw_only=True, slots=True)
class Paint:
    """How it is painted."""

    colour: Literal["red", "green"]
    """Which paint to buy."""
    coats: int = 2
    """How often to paint, a number that
    runs over two lines here."""

    def __post_init__(self) -> None:
        if self.coats < 1:
            raise ValueError(f"paint.coats must be at least 1, got {self.coats}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """What drives it."""

    power: float = 1.5
    """In kilowatts."""
    fan: bool = False
    """Whether air is blown over it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Car:
    """The root."""

    wheels: int
    """How many of them."""
    name: str = "plain"
    """Written on its side."""
    note: str | None = None
    """Anything else."""
    limit: float | None = None
    """Top speed; null drives on."""
    gears: tuple[float, float] = (0.5, 1.0)
    """Lowest and highest ratio."""
    doors: tuple[str, ...] = ()
    """Names of its doors."""
    seats: list[int] = field(default_factory=list)
    """Seats in each row."""
    engine: Engine = Engine()
    """The engine."""
    paint: Paint | None = None
    """Left out: bare metal."""
    spare: Engine | None = None
    """One more engine."""


@pytest.fixture
def write(tmp_path: Path):
    def text_to_file(text: str) -> Path:
        path = tmp_path / "car.yaml"
        path.write_text(text)
        return path

    return text_to_file


def refusal(path: Path | None = None, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the caller looks at the message
        load(Car, path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_give_way_to_the_file_and_the_file_to_overrides(write) -> None:
    path = write("wheels: 4\nname: file\nengine:\n  power: 2\n")
    car = load(Car, path, ["name=line", "engine.fan=true"])
    assert car == Car(wheels=4, name="line", engine=Engine(power=2.0, fan=True))


def test_of_two_overrides_the_later_wins() -> None:
    assert load(Car, None, ["wheels=3", "wheels=4"]).wheels == 4


def test_the_result_is_the_frozen_dataclass_itself() -> None:
    car = load(Car, None, ["wheels=4", "paint.colour=red"])
    assert type(car.engine) is Engine
    assert type(car.paint) is Paint
    with pytest.raises(FrozenInstanceError):
        car.wheels = 3  # type: ignore[misc]


def test_an_absent_section_is_made_by_an_override() -> None:
    assert load(Car, None, ["wheels=4"]).paint is None
    assert load(Car, None, ["wheels=4", "paint.colour=green"]).paint == Paint(colour="green")


def test_a_section_that_needs_no_key_is_made_by_empty_braces(write) -> None:
    assert load(Car, None, ["wheels=4", "spare={}"]).spare == Engine()
    assert load(Car, write("wheels: 4\nspare: {}\n")).spare == Engine()
    assert load(Car, write("wheels: 4\nspare:\n")).spare is None


def test_a_section_of_the_file_is_changed_or_removed_by_an_override(write) -> None:
    path = write("wheels: 4\npaint: {colour: red, coats: 5}\n")
    assert load(Car, path, ["paint.colour=green"]).paint == Paint(colour="green", coats=5)
    assert load(Car, path, ["paint=null"]).paint is None


@pytest.mark.parametrize("text", ["engine:\n  power: 2\n", "engine: {}\n", "{}\n", ""])
def test_a_file_may_leave_out_what_the_command_line_adds(write, text: str) -> None:
    assert load(Car, write(text), ["wheels=4"]).wheels == 4


def test_lists_and_tuples_are_read_from_the_file_and_the_command_line(write) -> None:
    car = load(Car, write("wheels: 4\ngears: [0.1, 2]\nseats: [2, 3]\n"), ["doors=[left, right]"])
    assert (car.gears, car.seats, car.doors) == ((0.1, 2.0), [2, 3], ("left", "right"))


@pytest.mark.parametrize("number", ["1e-3", "0.001", "1.0e-3"])
def test_floats_are_read_in_every_usual_spelling(write, number: str) -> None:
    assert load(Car, write(f"wheels: 4\nlimit: {number}\n")).limit == 0.001
    assert load(Car, None, ["wheels=4", f"limit={number}"]).limit == 0.001


@pytest.mark.parametrize(
    "text",
    [
        "Q: what? A: {this} [and, that",
        "1.10",
        "true",
        "null",
        "",
        " spaces ",
        "a=b",
        "two\nlines",
        "echo ${HOME}",
        r"back\${slash} \\${es} \n",
        "# no comment",
    ],
)
def test_a_text_field_takes_an_override_word_for_word(write, text: str) -> None:
    car = load(Car, None, ["wheels=4", f"name={text}"])
    assert car.name == text
    assert load(Car, write(to_yaml(car))) == car


def test_null_empties_an_optional_field(write) -> None:
    path = write("wheels: 4\nnote: something\nlimit: 5\n")
    car = load(Car, path, ["note=null", "limit=null"])
    assert (car.note, car.limit) == (None, None)


def test_a_dollar_sign_in_a_file_means_itself(write) -> None:
    assert load(Car, write("wheels: 4\nname: ${wheels} of them\n")).name == "${wheels} of them"


@pytest.mark.parametrize(
    "car",
    [
        Car(wheels=4),
        Car(
            wheels=4,
            name="${x}: 'y'",
            note="null",
            limit=1e-5,
            gears=(0.1, 0.2),
            doors=("1", "no"),
            seats=[1, 2],
            engine=Engine(fan=True),
            paint=Paint(colour="green", coats=7),
        ),
    ],
)
def test_what_to_yaml_writes_loads_back_equal(write, car: Car) -> None:
    assert load(Car, write(to_yaml(car))) == car


def test_an_unknown_key_of_a_file_is_refused_with_the_nearest_name(write) -> None:
    path = write("wheels: 4\nengine:\n  pover: 2\n")
    assert refusal(path) == f"{path}: unknown key engine.pover; did you mean engine.power?"


def test_an_unknown_override_is_refused_with_the_nearest_name() -> None:
    assert refusal(None, "wheel=4") == "wheel=4: unknown key wheel; did you mean wheels?"
    assert "unknown key paint.color; did you mean paint.colour?" in refusal(None, "paint.color=red")


def test_an_unknown_key_like_no_other_is_refused_with_all_that_are_known() -> None:
    assert refusal(None, "engine.xyz=1").endswith("unknown key engine.xyz; known: power, fan")


@pytest.mark.parametrize(
    ("key", "text", "complaint"),
    [
        ("wheels", "four", "wheels must be int, got 'four'"),
        ("wheels", "1.5", "wheels must be int, got 1.5"),
        ("wheels", "1e3", "wheels must be int, got 1000.0; write 1000"),
        ("wheels", "true", "wheels must be int, got True"),
        ("wheels", "null", "wheels must be int, got None"),
        ("wheels", "${limit}", "wheels must be int, got '${limit}'"),
        ("engine.power", "much", "engine.power must be float, got 'much'"),
        ("engine.fan", "perhaps", "engine.fan must be bool, got 'perhaps'"),
        ("engine", "big", "engine must be a section (power, fan), got 'big'"),
        ("engine", "null", "engine must be a section (power, fan), got None"),
        ("paint.colour", "blue", "paint.colour must be red | green, got 'blue'"),
        ("gears", "[1.0]", "gears must be tuple[float, float], got [1.0]"),
        ("gears", "[a, b]", "gears must be tuple[float, float], got ['a', 'b']"),
        ("seats", "3", "seats must be list[int], got 3"),
        ("seats", "[1, b]", "seats must be list[int], got [1, 'b']"),
        ("limit", "fast", "limit must be float, got 'fast'"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_in_a_file_and_on_the_command_line(
    write, key: str, text: str, complaint: str
) -> None:
    path = write(_yaml(key, text))
    assert refusal(path) == f"{path}: {complaint}"
    assert refusal(None, f"{key}={text}") == f"{key}={text}: {complaint}"


def _yaml(key: str, text: str) -> str:
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(key.split("."))]
    return "\n".join(lines) + f" {text}\n"


def test_a_key_below_a_plain_value_is_refused() -> None:
    assert refusal(None, "wheels.front=2").endswith("wheels must be int, got {'front': '2'}")
    assert refusal(None, "doors.0=left").endswith("got {'0': 'left'}")


def test_a_missing_required_key_is_named_with_its_section(write) -> None:
    assert refusal(None, "name=x").startswith("Car: required key wheels is missing; set it in")
    path = write("wheels: 4\npaint:\n  coats: 3\n")
    assert refusal(path).startswith(f"{path}: required key paint.colour is missing; set it in")


def test_the_checks_of_a_section_speak_for_themselves() -> None:
    message = refusal(None, "wheels=4", "paint.colour=red", "paint.coats=0")
    assert message == "paint.coats must be at least 1, got 0"


def test_a_missing_file_is_named_with_the_nearest_one(write) -> None:
    path = write("wheels: 4\n")
    missing = path.with_name("cars.yaml")
    assert refusal(missing) == f"no config file {missing}; did you mean {path}?"
    assert refusal(path / "below.yaml") == f"no config file {path / 'below.yaml'}"
    assert refusal(path.parent) == f"no config file {path.parent}"


@pytest.mark.parametrize("text", ["wheels: [4", "wheels: 4\nwheels: 5\n", "a: b: c", "\twheels: 4"])
def test_bad_yaml_is_refused(write, text: str) -> None:
    path = write(text)
    assert refusal(path).startswith(f"{path} is not valid YAML: ")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "car.yaml"
    path.write_bytes(b"\xff\xfe\x00wheels")
    assert refusal(path).startswith(f"{path} is not valid YAML: ")


def test_a_file_that_holds_a_list_is_refused(write) -> None:
    path = write("- wheels\n")
    assert refusal(path) == f"{path} must hold keys and values, not a list"


@pytest.mark.parametrize("override", ["wheels", "=4", "", "engine.=4", ".wheels=4", "--fast"])
def test_what_is_not_an_override_is_refused(override: str) -> None:
    assert refusal(None, override).startswith(f"{override!r} is not an override: write key=value")


def test_an_override_that_is_not_yaml_is_refused() -> None:
    assert refusal(None, "seats=[1").startswith("seats=[1: ")


def test_a_long_override_is_quoted_in_short_and_on_one_line() -> None:
    message = refusal(None, "nam=" + "long text\n" * 100)
    assert message.endswith("unknown key nam; did you mean name?")
    assert len(message) < 150


def test_help_shows_the_docstring_type_and_default_of_every_key() -> None:
    lines = help_text(Car).splitlines()
    entries = {
        head.split(":")[0]: (head, text.strip())
        for head, text in itertools.pairwise(lines)
        if text.startswith("    ")
    }
    assert entries["wheels"] == ("wheels: int = required", "How many of them.")
    assert entries["note"] == ("note: str = absent", "Anything else.")
    assert entries["gears"] == (
        "gears: tuple[float, float] = (0.5, 1.0)",
        "Lowest and highest ratio.",
    )
    assert entries["engine.*"] == ("engine.*", "The engine.")
    assert entries["paint.* (absent by default)"][1] == "Left out: bare metal."
    assert entries["paint.colour"] == (
        "paint.colour: red | green = required",
        "Which paint to buy.",
    )
    assert (
        entries["paint.coats"][1] == "How often to paint, a number that runs over two lines here."
    )
    assert len(entries) == 10 + 2 + 2 + 2


def test_help_describes_a_section_without_a_docstring_of_its_field_by_its_own() -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Garage:
        """Where it stands."""

        engine: Engine = Engine()

    assert "engine.*\n    What drives it." in help_text(Garage)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limit: .nan", "limit must be a finite number, got nan"),
        ("limit: 'inf'", "limit must be a finite number, got inf"),
        ("engine: {power: -.inf}", "engine.power must be a finite number, got -inf"),
        (f"wheels: {10**30}", "wheels must be a number of at most 63 bits, got 10000"),
        (f"wheels: {'9' * 5000}", "is not valid YAML: Exceeds the limit"),
        ("'07'", "must hold keys and values, not 07"),
        ("1.5", "must hold keys and values, not 1.5"),
        ("[" * 100_000, "nested more than 64 levels deep"),
        ("wheels: " + "x" * 5000, r"wheels must be int, got 'x{119}\.\.\.$"),
    ],
)
def test_what_no_key_can_mean_is_refused_in_a_short_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "car.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load(Car, path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5000, "nan", "&a [*a]"])
def test_an_override_that_no_key_can_mean_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="limit"):
        load(Car, None, ["wheels=4", f"limit={value}"])
