"""The card of real runs: written on export, true, kept up to date by tune."""

import io
import json
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from inference.__main__ import main
from inference.card.decoding import BEGIN, END
from inference.export import ExportConfig, export
from inference.identity import identify
from inference.tuned import FILE, carry_tuned, read_tuned, write_tuned
from tests.card_facts import tuned as tuned_facts
from tests.e2e.runs import curve, train, write_config

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("carded_run")
    train([str(write_config(folder, checkpoint={"every": 3, "keep_last": 9}))])
    return folder / "run"


@pytest.fixture
def tuned_run(run: Path, tmp_path: Path) -> Path:
    """The run with settings beside it, as `tune` would find them on a machine with slow layers."""
    found = Path(shutil.copytree(run, tmp_path / "tuned_run"))
    model = identify(str(found), dtype="float32", device="cpu")
    same = {"value": 1.5, "low": 1.4, "high": 1.6}
    given = tuned_facts()
    measured = {
        "strategy": given.strategy,
        "exit_layer": 2,
        "num_speculations": 4,
        **dict.fromkeys(("acceptance", "speedup", "speed", "base_speed"), same),
    }
    names = {name: getattr(model, name) for name in ("model", "weights", "dtype", "device")}
    decoding = {"strategy": given.strategy, "exit_layer": 2, "num_speculations": 4}
    content = {"decoding": decoding, "identity": names, "measured": measured}
    write_tuned(found / FILE, {**content, "prompts": "p.txt", "num_prompts": 8})
    return found


def card_of(source: Path, folder: Path, **changes: object) -> str:
    return (export(source, folder, ExportConfig(**changes)) / "README.md").read_text()  # type: ignore[arg-type]


def test_an_export_has_a_card_with_the_figures_of_its_run(run: Path, tmp_path: Path) -> None:
    text = card_of(run, tmp_path / "hf", license="apache-2.0")
    card = ModelCard(text)
    assert card.data.license == "apache-2.0"
    assert card.data.base_model is None
    last = [line for line in curve(run) if line["kind"] == "valid"][-1]
    for exit_layer, loss in last["loss_per_exit"].items():  # type: ignore[attr-defined]
        assert f"| {exit_layer} | {loss:.3f} | " in text
    assert "| exit loss | e_scale 0.5; rotational, every 2 layers, and the last |" in text
    assert "| steps | 12, each 16 sequences of 32 positions; " in text
    assert "| files `text` | text | 100.0% |" in text
    assert str(run.parent) not in text


def test_the_card_of_an_older_checkpoint_has_the_figures_of_then(run: Path, tmp_path: Path) -> None:
    text = card_of(run / "checkpoints" / "step_00000006", tmp_path / "hf")
    then = next(x for x in curve(run) if (x["kind"], x["step"]) == ("valid", 4))
    assert "Validated after step 4 " in text
    assert "The weights here are those after step 6." in text
    assert f"| 4 | {then['loss_per_exit'][4]:.3f} | " in text  # type: ignore[index]
    assert "| steps | 6 of 12" in text


def test_what_the_card_shows_works_in_transformers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = card_of(run, Path("hf"))
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    with redirect_stdout(io.StringIO()) as out:
        for block in blocks:
            exec(block, names)
    plain, drafted = names["tokens"], names["drafted"]
    assert isinstance(plain, torch.Tensor)
    assert isinstance(drafted, torch.Tensor)
    assert plain.tolist() == drafted.tolist()
    assert len(out.getvalue().splitlines()) >= 2


def test_an_export_of_a_folder_says_what_little_is_known(run: Path, tmp_path: Path) -> None:
    first = export(run, tmp_path / "first", ExportConfig(license="mit"))
    text = card_of(first, tmp_path / "second", dtype="bfloat16")
    assert ModelCard(text).data.license == "mit"
    assert "Made from `first`; how that was trained is not known here." in text
    assert "stored in bfloat16" in text
    assert "## Recipe" not in text


def test_a_card_that_is_there_is_never_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and was left as it is"):
        export(run, tmp_path / "hf", ExportConfig())
    assert [p.name for p in (tmp_path / "hf").iterdir()] == ["README.md"]
    assert (tmp_path / "hf" / "README.md").read_text() == "mine"


def test_what_was_tuned_goes_along_and_is_used(
    tuned_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = card_of(tuned_run, tmp_path / "hf")
    assert "with drafts of 4 at exit 2 was 1.50x as fast as plain decoding" in text
    assert "assistant_early_exit=2" in text
    main(["generate", str(tmp_path / "hf"), "prompt=def f", "max_new_tokens=8", "output=json"])
    values = json.loads(capsys.readouterr().out)
    assert (values["strategy"], values["exit_layer"]) == ("self_speculative", 2)


def test_what_was_tuned_for_other_weights_stays_behind(tuned_run: Path, tmp_path: Path) -> None:
    text = card_of(tuned_run / "checkpoints" / "step_00000006", tmp_path / "older")
    assert "Not measured yet." in text
    assert not (tmp_path / "older" / FILE).exists()
    (tuned_run / "checkpoints" / "latest").write_text("step_00000006\n")
    assert "Not measured yet." in card_of(tuned_run, tmp_path / "run")
    assert not (tmp_path / "run" / FILE).exists()


def test_rounded_weights_do_not_take_settings_along(tuned_run: Path, tmp_path: Path) -> None:
    folder = export(tuned_run, tmp_path / "hf", ExportConfig(dtype="bfloat16"))
    assert not (folder / FILE).exists()


def test_tune_brings_the_card_up_to_date(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export(run, tmp_path / "hf", ExportConfig())
    before = (folder / "README.md").read_text()
    (tmp_path / "p.txt").write_text("def f\nreturn x\n")
    keys = [f"prompts={tmp_path / 'p.txt'}", "max_new_tokens=8", "stop_at_eos=false"]
    main(["tune", str(folder), *keys, "exit_layer=[1,2]", "num_speculations=[2]"])
    assert f"{folder / 'README.md'} brought up to date" in capsys.readouterr().out
    after = (folder / "README.md").read_text()
    assert "Measured by `tune` on 2 prompts of `p.txt`, in float32 on cpu." in after
    cut = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.S)
    assert cut.sub("", after) == cut.sub("", before)
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 4
    assert AutoTokenizer.from_pretrained(folder)("return x")["input_ids"]
    content = read_tuned(folder / FILE)
    carry_tuned(content, folder)
    assert read_tuned(folder / FILE) == content
