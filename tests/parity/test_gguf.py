import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from models.hf import load_pretrained, load_weights, read_config
from models.llama import Llama
from tests.parity.reference import our_logits, random_ids
from tests.tiny import tiny_config, tiny_llama

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.parity

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
}


def in_gguf_order(name, weight, config):
    """llama.cpp turns neighbouring pairs, transformers turns halves: queries and keys differ."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.kv_heads}
    for part, count in heads.items():
        if part in name:
            weight = weight.view(count, 2, -1, weight.shape[1]).transpose(1, 2)
            weight = weight.reshape(-1, weight.shape[-1])
    return np.ascontiguousarray(weight.numpy())


def write_gguf(file, model, extra=(), rope_scaling=None):
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if rope_scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope_scaling))
    for name, parameter in model.named_parameters():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, in_gguf_order(name, parameter.detach(), config))
    for name in extra:
        writer.add_tensor(name, np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_gguf_folder_is_the_model_that_transformers_reads_from_it(tmp_path, tied):
    config = tiny_config(tie_word_embeddings=tied, rope_theta=1e5)
    model = tiny_llama(config, dtype=torch.float32)
    write_gguf(tmp_path / "tiny.gguf", model)
    ours = load_pretrained(tmp_path, dtype=torch.float32)
    for (name, parameter), loaded in zip(model.named_parameters(), ours.parameters(), strict=True):
        assert torch.equal(parameter, loaded), name
    theirs = LlamaForCausalLM(AutoConfig.from_pretrained(tmp_path, gguf_file="tiny.gguf"))
    tensors = load_gguf_checkpoint(
        tmp_path / "tiny.gguf", return_tensors=True, model_to_load=theirs
    )["tensors"]
    theirs.load_state_dict(tensors, strict=False)
    ids = random_ids(config)
    torch.testing.assert_close(our_logits(ours, ids), theirs(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"extra": ["rope_freqs.weight"]}, "rope_freqs.weight"),
        ({"extra": ["blk.1.attn_q.bias"]}, "blk.1.attn_q.bias"),
        ({"rope_scaling": "linear"}, "llama.rope.scaling.type"),
    ],
    ids=["llama 3 rope", "biases", "linear rope"],
)
def test_what_transformers_would_drop_from_a_gguf_is_refused(tmp_path, options, named):
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(dtype=torch.float32), **options)
    with pytest.raises(ValueError, match=f"tiny.gguf: cannot read {named} from GGUF"):
        load_pretrained(tmp_path, dtype=torch.float32)


def test_a_gguf_of_another_shape_is_refused(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(dtype=torch.float32))
    with pytest.raises(ValueError, match=r"shape .* in the model"):
        load_weights(Llama(tiny_config(intermediate_size=96)), tmp_path)


def test_two_gguf_files_in_a_folder_are_refused(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="holds 2 GGUF files: leave one"):
        read_config(tmp_path)
