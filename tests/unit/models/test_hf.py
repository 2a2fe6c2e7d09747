import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.hf import iterate_weights, load_pretrained, load_weights, read_config, save_pretrained
from models.llama import Llama
from tests.tiny import tiny_config, tiny_llama


def save(folder, model=None, **options):
    model = model or tiny_llama(dtype=torch.float32)
    options = {"dtype": torch.float32, **options}
    save_pretrained(model.named_parameters(), model.config, folder, **options)
    return model


def change_weights(folder, change):
    """Rewrite the only weight file of a folder."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(error, action, *args, **options):
    """Return the message of the error that an action raises; it must be one line."""
    with pytest.raises(error) as raised:
        action(*args, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Loading.


@pytest.mark.parametrize("max_shard_bytes", [10**9, 60_000], ids=["one file", "shards"])
def test_what_was_saved_is_loaded_bitwise(tmp_path, max_shard_bytes):
    model = save(tmp_path / "m", max_shard_bytes=max_shard_bytes)
    loaded = load_pretrained(tmp_path / "m", dtype=torch.float32)
    assert read_config(tmp_path / "m").rope_theta == model.config.rope_theta
    assert same(model.parameters(), loaded.parameters())
    assert all(p.requires_grad and p.is_leaf for p in loaded.parameters())


def test_weights_are_converted_to_the_dtype_of_the_model(tmp_path):
    model = save(tmp_path / "m")
    loaded = load_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    assert same((p.bfloat16() for p in model.parameters()), loaded.parameters())


def test_weights_are_stored_in_the_dtype_asked_for(tmp_path):
    model = save(tmp_path / "m", dtype=torch.bfloat16)
    stored = dict(iterate_weights(tmp_path / "m"))
    assert all(torch.equal(stored[n], p.bfloat16()) for n, p in model.named_parameters())


def test_weights_are_given_one_by_one_to_an_assignment(tmp_path):
    model, target, given = save(tmp_path / "m"), Llama(tiny_config()), {}

    def assign(parameter, whole):
        given[id(parameter)] = whole

    load_weights(target, tmp_path / "m", assign=assign)
    for name, parameter in target.named_parameters():
        assert torch.equal(given[id(parameter)], model.get_parameter(name))


def test_a_tied_head_is_read_whether_it_was_stored_or_not(tmp_path):
    model = save(tmp_path / "m", tiny_llama(tiny_config(tie_word_embeddings=True)))
    embedding = model.model.embed_tokens.weight.detach().float()
    assert "lm_head.weight" not in dict(iterate_weights(tmp_path / "m"))
    change_weights(tmp_path / "m", lambda w: w.update({"lm_head.weight": embedding.clone()}))
    assert "lm_head.weight" not in dict(iterate_weights(tmp_path / "m"))
    assert same(
        model.float().parameters(),
        load_pretrained(tmp_path / "m", dtype=torch.float32).parameters(),
    )


def test_a_tied_head_that_differs_is_refused(tmp_path):
    save(tmp_path / "m", tiny_llama(tiny_config(tie_word_embeddings=True)))
    change_weights(tmp_path / "m", lambda w: w.update({"lm_head.weight": torch.ones(96, 64)}))
    message = refusal(ValueError, load_pretrained, tmp_path / "m", dtype=torch.float32)
    assert "tie_word_embeddings is true but lm_head.weight differs" in message


def test_rotary_buffers_of_old_checkpoints_are_ignored(tmp_path):
    model = save(tmp_path / "m")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(tmp_path / "m", lambda w: w.update({name: torch.ones(8)}))
    loaded = load_pretrained(tmp_path / "m", dtype=torch.float32)
    assert same(model.parameters(), loaded.parameters())


# Checkpoints that do not fit.

NORM = "model.layers.2.input_layernorm.weight"
FAULTS = {
    "missing": (lambda w: w.pop(NORM), f"{NORM} is missing from "),
    "unexpected": (lambda w: w.update(extra=torch.ones(1)), "extra is in "),
    "another shape": (lambda w: w.update({NORM: torch.ones(3)}), f"{NORM} has shape (3,) in "),
    "no head": (lambda w: w.pop("lm_head.weight"), "compare tie_word_embeddings"),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_copied(
    tmp_path, change, message
):
    save(tmp_path / "m")
    change_weights(tmp_path / "m", change)
    target = tiny_llama(seed=9)
    assert message in refusal(ValueError, load_weights, target, tmp_path / "m")
    assert same(target.parameters(), tiny_llama(seed=9).parameters())


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"vocab_size": 100}, ["weight has shape (96, 64)", "(100, 64)", "config.json"]),
        ({"num_hidden_layers": 6}, ["model.layers.4.", "17 more", "missing", "num_hidden_layers"]),
        ({"num_hidden_layers": 3}, ["model.layers.3.", "8 more", "not in the model"]),
        ({"attention_bias": True}, ["k_proj.bias", "and 15 more", "missing", "attention_bias"]),
        ({"tie_word_embeddings": True}, ["lm_head.weight", "not in the model", "tie_word_emb"]),
    ],
    ids=str,
)
def test_a_model_of_another_shape_is_told_what_differs(tmp_path, changes, parts):
    save(tmp_path / "m")
    message = refusal(ValueError, load_weights, Llama(tiny_config(**changes)), tmp_path / "m")
    assert all(part in message for part in [*parts, str(tmp_path / "m")]), message


def test_memory_is_not_taken_for_a_model_that_is_not_there(tmp_path):
    save(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    described = json.loads(file.read_text()) | {"vocab_size": 2**24, "intermediate_size": 2**24}
    file.write_text(json.dumps(described))
    message = refusal(ValueError, load_pretrained, tmp_path / "m", dtype=torch.float64)
    assert "has shape" in message


def test_a_missing_shard_is_named(tmp_path):
    save(tmp_path / "m", max_shard_bytes=60_000)
    shard = sorted((tmp_path / "m").glob("model-*"))[1]
    shard.unlink()
    message = refusal(ValueError, load_pretrained, tmp_path / "m", dtype=torch.float32)
    assert str(shard) in message
    assert "missing" in message


def test_a_shard_without_a_tensor_that_the_index_places_there_is_named(tmp_path):
    save(tmp_path / "m", max_shard_bytes=60_000)
    shards = sorted((tmp_path / "m").glob("model-*"))
    shards[0].write_bytes(shards[1].read_bytes())
    message = refusal(ValueError, load_pretrained, tmp_path / "m", dtype=torch.float32)
    assert f"{shards[0]} lacks model.embed_tokens.weight" in message


@pytest.mark.parametrize("kept", [0, 100, 20_000])
def test_a_file_that_was_cut_short_is_named(tmp_path, kept):
    save(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    os.truncate(file, kept)
    message = refusal(ValueError, load_pretrained, tmp_path / "m", dtype=torch.float32)
    assert str(file) in message


def test_an_index_that_is_no_index_is_named(tmp_path):
    save(tmp_path / "m", max_shard_bytes=60_000)
    file = tmp_path / "m" / "model.safetensors.index.json"
    for content in ("{", "{}", "[]"):
        file.write_text(content)
        message = refusal(ValueError, load_pretrained, tmp_path / "m", dtype=torch.float32)
        assert str(file) in message


def test_a_folder_without_a_model_is_refused(tmp_path):
    assert "has no config.json" in refusal(ValueError, read_config, tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "is not valid JSON" in refusal(ValueError, read_config, tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    assert "config.json" in refusal(ValueError, read_config, tmp_path)
    assert "is a file" in refusal(ValueError, read_config, tmp_path / "config.json")
    save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    message = refusal(ValueError, load_pretrained, tmp_path / "m", dtype=torch.float32)
    assert "pytorch_model.bin is a pickle, which may run any code and is never loaded" in message


def test_a_source_that_is_neither_a_folder_nor_a_hub_id_is_refused(tmp_path):
    message = refusal(ValueError, read_config, tmp_path / "nowhere")
    assert "neither a folder nor a hub id" in message


def test_a_hub_id_that_cannot_be_reached_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = refusal(RuntimeError, read_config, "nobody/no-such-model")
    assert "nobody/no-such-model is not a folder here" in message


def test_a_model_in_the_hubs_cache_is_loaded_without_a_connection(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached, commit = tmp_path / "models--someone--tiny", "0" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots").mkdir()
    model = save(cached / "snapshots" / commit, max_shard_bytes=60_000)
    loaded = load_pretrained("someone/tiny", dtype=torch.float32)
    assert same(model.parameters(), loaded.parameters())


# Saving.


def test_a_folder_in_use_is_not_touched(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("mine")
    assert str(tmp_path / "m") in refusal(ValueError, save, tmp_path / "m")
    assert [p.name for p in tmp_path.rglob("*")] == ["m", "notes.txt"]


def test_an_empty_folder_and_missing_parents_are_accepted(tmp_path):
    (tmp_path / "m").mkdir()
    save(tmp_path / "m")
    save(tmp_path / "a" / "b")
    assert sorted(os.listdir(tmp_path / "m")) == sorted(os.listdir(tmp_path / "a" / "b"))


def test_what_a_killed_export_left_behind_is_replaced(tmp_path):
    (tmp_path / "m.tmp").mkdir()
    (tmp_path / "m.tmp" / "1.part").write_text("half")
    save(tmp_path / "m")
    assert sorted(os.listdir(tmp_path)) == ["m"]
    names = ["config.json", "generation_config.json", "model.safetensors"]
    assert sorted(os.listdir(tmp_path / "m")) == names


def broken(weights):
    yield from list(weights)[:5]
    raise RuntimeError("the disk of rank 3 is gone")


WRONG = {
    "an error half-way": (broken, RuntimeError, "rank 3"),
    "one too few": (lambda w: list(w)[:-1], ValueError, "lm_head.weight is missing"),
    "one too many": (lambda w: [*w, ("x", torch.ones(1))], ValueError, "x is in the weights"),
    "one twice": (lambda w: [*w, ("lm_head.weight", torch.ones(96, 64))], ValueError, "twice"),
    "another shape": (
        lambda w: [(n, p[:5]) for n, p in w],
        ValueError,
        "embed_tokens.weight has shape (5, 64) in the weights to save but (96, 64)",
    ),
}


@pytest.mark.parametrize(("spoil", "error", "part"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("max_shard_bytes", [10**9, 60_000], ids=["one file", "shards"])
def test_nothing_is_left_of_an_export_that_fails(tmp_path, spoil, error, part, max_shard_bytes):
    model = tiny_llama()
    message = refusal(
        error,
        save_pretrained,
        spoil(model.named_parameters()),
        model.config,
        tmp_path / "m",
        dtype=torch.float32,
        max_shard_bytes=max_shard_bytes,
    )
    assert part in message
    assert not list(tmp_path.iterdir())


def test_no_shard_is_larger_than_asked_unless_one_tensor_is(tmp_path):
    save(tmp_path / "m", max_shard_bytes=60_000)
    shards = sorted((tmp_path / "m").glob("model-*.safetensors"))
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    total = 0
    for shard in shards:
        tensors = load_file(shard)
        assert {n for n, file in index["weight_map"].items() if file == shard.name} == set(tensors)
        size = sum(t.nbytes for t in tensors.values())
        assert size <= 60_000 or len(tensors) == 1
        total += size
    assert index["metadata"]["total_size"] == total
