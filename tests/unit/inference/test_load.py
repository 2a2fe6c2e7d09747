import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from inference.generate import autoregressive
from inference.generation import Generation, Settings
from inference.load import Loaded, load
from models.hf_config import config_to_hf
from models.plan import full
from parallel.checkpointer import Checkpointer
from parallel.config import ParallelConfig
from parallel.publish import latest
from parallel.world import start
from tests.distributed.recipe import engine_steps, make_engine, whole
from tests.ranks import run_ranks
from tests.tiny import tiny_config

CONFIG = tiny_config(vocab_size=300)


def _load(source: Path, dtype: torch.dtype = torch.float64) -> Loaded:
    return load(source, dtype=dtype, device="cpu")


def _train_and_save(run: str, tokenizer: str) -> dict[str, Tensor]:
    """On a rank: train a step, save, train another, save; return the last weights."""
    world = start(device="cpu")
    engine = make_engine(CONFIG, ParallelConfig(), world)
    saver = Checkpointer(Path(run) / "checkpoints", engine, keep_last=2, asynchronous=False)

    def write_extras(folder: Path) -> None:
        described = config_to_hf(CONFIG, dtype="float64")
        (folder / "model" / "config.json").write_text(json.dumps(described))
        shutil.copytree(tokenizer, folder / "tokenizer")

    for step in range(2):
        engine_steps(engine, world, steps=[step])
        saver.save(step + 1, {}, write_extras)
    return {name: whole(t).clone() for name, t in engine.weights().items()}


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path
) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("run")
    return folder, run_ranks(_train_and_save, str(folder), str(tokenizer_folder), world=2)[0]


@pytest.mark.ranks
@pytest.mark.parametrize("part", [".", "checkpoints", "checkpoints/step_00000002"])
def test_shards_of_two_ranks_become_the_trained_model(
    run: tuple[Path, dict[str, Tensor]], part: str
) -> None:
    loaded = _load(run[0] / part)
    assert loaded.origin == str(run[0] / "checkpoints" / "step_00000002")
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, run[1][name]), name
    assert loaded.encode("def") == loaded.tokenizer.encode("def")
    assert loaded.eos_ids == {loaded.tokenizer.eos_id}


@pytest.mark.ranks
def test_an_older_checkpoint_and_another_type_may_be_asked_for(
    run: tuple[Path, dict[str, Tensor]],
) -> None:
    older = _load(run[0] / "checkpoints" / "step_00000001")
    assert not torch.equal(older.model.model.norm.weight, run[1]["model.norm.weight"])
    half = _load(run[0], torch.bfloat16)
    for name, parameter in half.model.named_parameters():
        assert torch.equal(parameter, run[1][name].to(torch.bfloat16)), name


@pytest.mark.ranks
def test_a_missing_shard_is_named(run: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    newest = latest(run[0] / "checkpoints")
    assert newest is not None
    copy = shutil.copytree(newest, tmp_path / newest.name)
    shard = sorted((copy / "model").glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(RuntimeError, match=f"{shard.name} is missing"):
        _load(copy)


def test_a_run_that_has_saved_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RuntimeError, match="holds no complete checkpoint yet"):
        _load(tmp_path)


def test_a_place_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="not/a/folder is neither a folder nor a hub id"):
        _load(Path("not/a/folder"))


def test_an_exported_folder_brings_its_tokenizer_and_all_its_ends(exported: Path) -> None:
    loaded = _load(exported)
    assert loaded.eos_ids == {1, 7}
    assert loaded.decode(loaded.encode("def f(x):\n")) == "def f(x):\n"
    rounds = autoregressive(
        loaded.model, loaded.encode("def"), plan=full(4), settings=Settings(max_new_tokens=3)
    )
    assert len(Generation(tuple(rounds)).token_ids) == 3


def test_a_tokenizer_larger_than_the_model_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "model")
    _put_words(folder, 301)
    with pytest.raises(ValueError, match=r"tokenizer has 301 tokens, the model 300"):
        _load(folder)


def test_a_token_that_the_tokenizer_lacks_is_named(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "model")
    _put_words(folder, 20)
    with pytest.raises(ValueError, match="made token 25, its tokenizer has 20 of its 300 tokens"):
        _load(folder).decode([3, 25])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "generation_config.json is not valid JSON"),
        ('{"eos_token_id": ["a"]}', r"eos_token_id is \['a'\]; ids of tokens are needed"),
        ('{"eos_token_id": {"a": 1}}', "ids of tokens are needed"),
    ],
)
def test_a_damaged_generation_config_is_named(
    exported: Path, tmp_path: Path, content: str, message: str
) -> None:
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        _load(folder)


def test_a_prompt_with_stray_bytes_is_refused(exported: Path) -> None:
    with pytest.raises(ValueError, match="the prompt is not UTF-8 text"):
        _load(exported).encode("a\udcff")


def test_an_empty_prompt_needs_a_token_to_begin_with(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        _load(exported).encode("")
    folder = shutil.copytree(exported, tmp_path / "model")
    _put_words(folder, 20, adds_bos=True)
    assert _load(folder).encode("") == [1]


@pytest.mark.parametrize(("adds_bos", "ids"), [(True, [1, 5]), (False, [5])])
def test_a_first_token_is_added_only_where_upstream_adds_it(
    exported: Path, tmp_path: Path, adds_bos: bool, ids: list[int]
) -> None:
    folder = shutil.copytree(exported, tmp_path / "model")
    _put_words(folder, 20, adds_bos=adds_bos)
    assert _load(folder).encode("w5") == ids


def _put_words(folder: Path, count: int, *, adds_bos: bool = False) -> None:
    """Replace a folder's tokenizer by one of `count` words, with ends of sequence <s> and </s>."""
    for file in folder.glob("tokenizer*"):
        file.unlink()
    words = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, count))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    if adds_bos:
        added: Any = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        backend.post_processor = added
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(str(folder))
