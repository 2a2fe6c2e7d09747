import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM
from transformers import LlamaConfig as HFConfig

from models.hf import load_pretrained, read_config, save_pretrained
from tests.parity.reference import LLAMA3, VARIANTS, our_logits, pair, random_ids
from tests.tiny import tiny_config, tiny_llama

pytestmark = pytest.mark.parity

every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def from_transformers(folder, **options):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="sdpa", **options
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


@every_variant
def test_theirs_to_ours_to_theirs_is_bitwise_the_same(changes, tmp_path):
    config = tiny_config(**changes)
    _, theirs = pair(config, dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(tmp_path / "theirs", dtype=torch.float32)
    save_pretrained(ours.named_parameters(), ours.config, tmp_path / "ours", dtype=torch.float32)
    again = from_transformers(tmp_path / "ours", dtype=torch.float32)
    expected = theirs.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    ids = random_ids(config)
    assert torch.equal(again(ids).logits, theirs(ids).logits)


@every_variant
def test_a_config_survives_the_way_through_transformers(changes, tmp_path):
    config = tiny_config(num_key_value_heads=2, head_dim=16) if not changes else None
    config = config or tiny_config(**changes)
    _, theirs = pair(config, dtype=torch.float32)
    theirs.save_pretrained(tmp_path)
    back = read_config(tmp_path)
    fields = ("rope_theta", "rope_scaling", "rms_norm_eps", "tie_word_embeddings", "mlp_bias")
    fields += ("attention_bias", "kv_heads", "head_width", "max_position_embeddings")
    fields += ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    assert {f: getattr(back, f) for f in fields} == {f: getattr(config, f) for f in fields}


@pytest.mark.parametrize("max_shard_bytes", [5 * 10**9, 60_000, 1], ids=["one", "few", "many"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_transformers_loads_our_folder_in_any_number_of_shards(tied, max_shard_bytes, tmp_path):
    config = tiny_config(tie_word_embeddings=tied, rope_scaling=LLAMA3)
    ours = tiny_llama(config, dtype=torch.float32)
    save_pretrained(
        ours.named_parameters(),
        config,
        tmp_path / "model",
        dtype=torch.float32,
        max_shard_bytes=max_shard_bytes,
        eos_token_id=[5, 7],
        bos_token_id=3,
    )
    shards = list((tmp_path / "model").glob("model-*.safetensors"))
    assert (len(shards) > 1) == (max_shard_bytes < 10**9)
    theirs = from_transformers(tmp_path / "model")
    ids = random_ids(config)
    torch.testing.assert_close(our_logits(ours, ids), theirs(ids).logits, rtol=0, atol=1e-5)
    assert theirs.generation_config.eos_token_id == [5, 7]
    assert theirs.config.bos_token_id == 3


def test_transformers_reads_the_dtype_and_the_absence_of_special_tokens(tmp_path):
    model = tiny_llama()
    save_pretrained(model.named_parameters(), model.config, tmp_path / "m", dtype=torch.bfloat16)
    theirs = from_transformers(tmp_path / "m")
    assert theirs.dtype == torch.bfloat16
    assert theirs.config.eos_token_id is None
    assert theirs.generation_config.eos_token_id is None
    config = AutoConfig.from_pretrained(tmp_path / "m")
    assert (config.bos_token_id, config.rope_parameters["rope_type"]) == (None, "default")


def test_shards_written_by_transformers_are_read(tmp_path):
    ours, theirs = pair(tiny_config(), dtype=torch.float32)
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_pretrained(tmp_path, dtype=torch.float32)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, ours.get_parameter(name)), name


def test_the_older_rope_keys_mean_what_transformers_takes_them_for(tmp_path):
    scaling = {
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    theirs = LlamaForCausalLM._from_config(
        HFConfig(**VALUES, rope_theta=5e5, rope_scaling=scaling), attn_implementation="sdpa"
    )
    theirs.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["rope_parameters"]
    values |= {"rope_theta": 5e5, "rope_scaling": scaling}
    (tmp_path / "config.json").write_text(json.dumps(values))
    ours = load_pretrained(tmp_path, dtype=torch.float32)
    assert ours.config.rope_scaling == LLAMA3
    ids = random_ids(ours.config)
    torch.testing.assert_close(our_logits(ours, ids), theirs(ids).logits, rtol=0, atol=1e-5)


def test_absent_optional_keys_mean_what_transformers_takes_them_for(tmp_path):
    theirs = LlamaForCausalLM._from_config(HFConfig(**VALUES), attn_implementation="sdpa")
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **VALUES}))
    ours = load_pretrained(tmp_path, dtype=torch.float32)
    ids = random_ids(ours.config)
    torch.testing.assert_close(our_logits(ours, ids), theirs(ids).logits, rtol=0, atol=1e-6)
    assert ours.config.rms_norm_eps == theirs.config.rms_norm_eps


VALUES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
