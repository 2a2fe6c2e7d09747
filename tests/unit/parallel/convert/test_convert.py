"""What is read, what is refused; DeepSpeed's files are made by hand here, as stage 3 makes them."""

import json
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_pipelines.tokenize import train_sentencepiece
from inference.load import load
from models.config import LlamaConfig
from models.hf import iterate_weights, save_pretrained
from models.hf_config import config_to_hf
from parallel.convert import sharded
from parallel.convert.__main__ import main
from parallel.convert.convert import ConvertConfig, convert
from tests.tiny import tiny_config, tiny_llama

CONFIG = tiny_config(vocab_size=300, num_hidden_layers=2)
STEP = 4


def to(source: Path, target: Path, **settings: str) -> Path:
    convert(source, target, ConvertConfig(**settings))
    return target


def weights(config: LlamaConfig = CONFIG) -> dict[str, Tensor]:
    model = tiny_llama(config, dtype=torch.float32)
    return {name: p.detach() for name, p in model.named_parameters()}


def weights_of(folder: Path) -> dict[str, Tensor]:
    return dict(iterate_weights(folder))


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """A Hugging Face folder with a tokenizer."""
    folder = tmp_path / "hf"
    save_pretrained(weights().items(), CONFIG, folder, dtype=torch.float32, eos_token_id=1)
    text = "there and back, and nothing is lost on the way. "
    train_sentencepiece([text * 50], 300, folder)
    return folder


def save_as_stage_3(folder: Path, size: int, *, prefix: str = "", **model: Any) -> Path:
    """Save what `size` ranks of stage 3 would; moments are multiples of the weights."""
    tag = folder / f"global_step{STEP}"
    tag.mkdir(parents=True)
    (folder / "latest").write_text(tag.name)
    named = {prefix + name: tensor for name, tensor in weights().items()}
    shapes = [OrderedDict((name, tensor.shape) for name, tensor in named.items())]
    state = {"param_shapes": shapes, "global_steps": STEP, "mp_world_size": 1, **model}
    torch.save(state, tag / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    for rank in range(size):
        flat = torch.cat([share(tensor, rank, size) for tensor in named.values()])
        moments = {"step": torch.tensor(4.0), "exp_avg": 2 * flat, "exp_avg_sq": 3 * flat}
        inner = {"state": {0: moments}, "param_groups": [{"lr": 0.1, "params": [0]}]}
        content = {
            "zero_stage": 3,
            "partition_count": size,
            "fp32_flat_groups": [flat],
            "optimizer_state_dict": inner,
        }
        file = tag / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": content}, file)
    return folder


def share(tensor: Tensor, rank: int, size: int) -> Tensor:
    numel = -(-tensor.numel() // size)
    padded = torch.zeros(size * numel)
    padded[: tensor.numel()] = tensor.flatten()
    return padded[rank * numel : (rank + 1) * numel]


@pytest.fixture
def described(tmp_path: Path) -> Path:
    folder = tmp_path / "described"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_to_hf(CONFIG, dtype="float32")))
    return folder


@pytest.mark.parametrize("middle", ["dcp", "zero"])
def test_a_hugging_face_folder_goes_there_and_back(hf: Path, tmp_path: Path, middle: str) -> None:
    back = to(to(hf, tmp_path / "middle", to=middle), tmp_path / "back", to="hf")
    assert_equal(weights_of(back), weights())
    assert json.loads((back / "config.json").read_text()) == json.loads(
        (hf / "config.json").read_text()
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        assert (back / name).read_bytes() == (hf / name).read_bytes()
    model = AutoModelForCausalLM.from_pretrained(back, dtype="auto")
    assert_equal(dict(model.state_dict()), weights())
    assert AutoTokenizer.from_pretrained(back).eos_token_id == model.config.eos_token_id == 1


def test_half_precision_becomes_float32_without_change(hf: Path, tmp_path: Path) -> None:
    rounded = {name: value.to(torch.bfloat16) for name, value in weights().items()}
    save_pretrained(rounded.items(), CONFIG, tmp_path / "half", dtype=torch.bfloat16)
    back = to(to(tmp_path / "half", tmp_path / "run", to="dcp"), tmp_path / "back", to="hf")
    assert_equal(weights_of(back), {name: value.float() for name, value in rounded.items()})


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=True)
    save_pretrained(weights(config).items(), config, tmp_path / "hf", dtype=torch.float32)
    zero = to(tmp_path / "hf", tmp_path / "zero", to="zero")
    # DeepSpeed's own converter writes the head too, without moments.
    tensors = zero / "global_step0" / "zero"
    (tensors / "lm_head.weight").mkdir()
    shutil.copy(tensors / "model.embed_tokens.weight" / "fp32.pt", tensors / "lm_head.weight")
    assert_equal(weights_of(to(zero, tmp_path / "back", to="hf")), weights(config))


def test_what_was_converted_can_be_decoded_from(hf: Path, tmp_path: Path) -> None:
    loaded = load(to(hf, tmp_path / "run", to="dcp"), dtype=torch.float32, device="cpu")
    assert_equal({name: p.detach() for name, p in loaded.model.named_parameters()}, weights())
    assert loaded.decode(loaded.encode("back")) == "back"


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_ranks_of_stage_3_are_put_together(
    tmp_path: Path, described: Path, size: int, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded, "FILE_BYTES", 50_000)  # several files
    source = save_as_stage_3(tmp_path / "ds", size, prefix=prefix)
    run = to(source, tmp_path / "run", to="dcp", config=str(described))
    checkpoint = run / "checkpoints" / "step_00000004"
    assert len(list((checkpoint / "model").glob("*.safetensors"))) > 1
    found = sharded.read_sharded(checkpoint)
    assert found.step == STEP
    for name, value in weights().items():
        assert torch.equal(found.weights[name].read(), value)
        assert torch.equal(found.optimizer[f"exp_avg.{name}"].read(), 2 * value)
        assert torch.equal(found.optimizer[f"exp_avg_sq.{name}"].read(), 3 * value)
        assert found.optimizer[f"step.{name}"].read() == 4


def test_the_config_and_tokenizer_beside_deepspeeds_folder_are_found(
    hf: Path, tmp_path: Path
) -> None:
    source = save_as_stage_3(tmp_path / "ds", 2)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((hf / name).read_bytes())
    back = to(source, tmp_path / "back", to="hf")
    assert_equal(weights_of(back), weights())
    assert (back / "tokenizer.json").is_file()


def test_a_config_and_tokenizer_can_be_given(hf: Path, tmp_path: Path, described: Path) -> None:
    source = save_as_stage_3(tmp_path / "ds", 2)
    settings = {"config": str(described), "tokenizer": str(hf)}
    run = to(source, tmp_path / "run", to="dcp", **settings)
    assert load(run, dtype=torch.float32, device="cpu").eos_ids == {1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "hf"}, r"is in this format already: choose another one than to=hf"),
        ({"to": "dcp", "config": "nowhere"}, "config=nowhere: the source has its own config.json"),
        ({"to": "dcp", "tokenizer": "nowhere"}, "tokenizer=nowhere: the source has its own"),
    ],
)
def test_what_would_change_nothing_is_refused(
    hf: Path, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        to(hf, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_left_alone(hf: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out exists and was left as it is"):
        to(hf, tmp_path / "out", to="dcp")


def test_a_conversion_that_fails_leaves_nothing(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(sharded, "write_manifest", fail)
    with pytest.raises(OSError, match="disk full"):
        to(hf, tmp_path / "out", to="dcp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_a_model_that_is_not_known_is_asked_for(tmp_path: Path) -> None:
    source = save_as_stage_3(tmp_path / "ds", 1)
    with pytest.raises(ValueError, match=r"has no config\.json.*: add config=FOLDER"):
        to(source, tmp_path / "out", to="dcp")


def test_a_parameter_too_many_or_too_few_is_named(tmp_path: Path) -> None:
    source = save_as_stage_3(tmp_path / "ds", 1)
    for layers, name in ((1, r"layers\.1\."), (3, r"layers\.2\.")):
        config = tiny_config(vocab_size=300, num_hidden_layers=layers)
        (source / "config.json").write_text(json.dumps(config_to_hf(config, dtype="float32")))
        with pytest.raises(ValueError, match=f"model.{name}"):
            to(source, tmp_path / "out", to="dcp")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"frozen_param_shapes": {"model.norm.weight": (64,)}}, "model.norm.weight was frozen"),
        ({"mp_world_size": 2}, "model parallelism"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, model: dict[str, Any], message: str
) -> None:
    source = save_as_stage_3(tmp_path / "ds", 1, **model)
    with pytest.raises(ValueError, match=message):
        to(source, tmp_path / "out", to="zero")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[", "config.json is not valid JSON"),
        ("tokenizer.json", "[]", "tokenizer.json must hold an object, not a list"),
        ("tokenizer.json", '{"added_tokens": [1]}', "tokenizer.json: added_tokens is damaged"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not valid JSON"),
    ],
)
def test_a_damaged_file_beside_the_weights_is_named(
    hf: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    source = shutil.copytree(hf, tmp_path / "damaged")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (source / file).write_text("{}")
    (source / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        to(source, tmp_path / "out", to="dcp")
    assert not (tmp_path / "out").exists()


def test_the_file_of_a_missing_rank_is_named(tmp_path: Path) -> None:
    source = save_as_stage_3(tmp_path / "ds", 3)
    next(source.rglob("*rank_1_mp*optim*")).unlink()
    with pytest.raises(ValueError, match="the file of rank 1 of 3 is missing"):
        to(source, tmp_path / "out", to="zero")


@pytest.mark.parametrize("named", ["global_step9", "../ds/global_step1", "a\x00b"])
def test_a_tag_that_is_not_beside_its_pointer_is_named(tmp_path: Path, named: str) -> None:
    source = save_as_stage_3(tmp_path / "ds", 1)
    (source / "latest").write_text(named)
    with pytest.raises(ValueError, match=f"latest names {named}, which is not there"):
        to(source, tmp_path / "out", to="zero")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["here", "there"], "required key to is missing"),
        (["here", "to=dcp"], "name two folders first"),
        (["nowhere", "there", "to=dcp"], "nowhere is not a folder: give a run of ours"),
        (["here", "there", "to=onnx"], "to must be dcp | zero | hf, got 'onnx'"),
        (["here", "there", "to=hf", "dtype=half"], "unknown key dtype"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        main(arguments)


def test_a_folder_with_nothing_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no checkpoint"):
        to(tmp_path / "empty", tmp_path / "out", to="dcp")


def test_the_command_says_what_it_made(
    hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(hf), str(tmp_path / "run"), "to=dcp"])
    assert capsys.readouterr().out == f"converted {hf} to {tmp_path / 'run'}\n"
    main(["--help"])
    assert "tokenizer: str = absent" in capsys.readouterr().out
