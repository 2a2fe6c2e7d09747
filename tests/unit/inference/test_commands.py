import dataclasses

import pytest

from inference.__main__ import USAGE, main
from inference.commands import COMMANDS


def test_help_names_every_command_and_key(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"python -m inference {name} MODEL" in USAGE
        assert f"\nKeys of {name}" in shown
        for field in dataclasses.fields(command.config):
            assert f"\n{field.name}: " in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_needs_a_model_and_known_keys(name: str) -> None:
    with pytest.raises(ValueError, match="no MODEL"):
        main([name])
    with pytest.raises(ValueError, match="unknown key nonsense"):
        main([name, "no/such/model", "nonsense=1"])
