import pytest
import torch

from inference.fast.convert import quicken
from inference.generate import autoregressive
from inference.generation import Generation, Settings
from models.plan import full
from tests.parity.reference import VARIANTS, our_logits, pair, random_ids
from tests.tiny import tiny_config

pytestmark = pytest.mark.parity


@pytest.mark.usefixtures("_exact_norms")
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_the_inference_form_has_the_logits_and_tokens_of_transformers(
    changes, dtype, tolerance
) -> None:
    config = tiny_config(**changes)
    ours, theirs = pair(config, dtype=dtype)
    ids = random_ids(config)
    with torch.inference_mode():
        fast, reference = quicken(ours.eval()), theirs.eval()(ids).logits
        torch.testing.assert_close(our_logits(fast, ids), reference, rtol=0, atol=tolerance)
        prompt = ids[:1]
        settings = Settings(max_new_tokens=12)
        made = Generation(
            tuple(autoregressive(fast, prompt[0].tolist(), plan=full(4), settings=settings))
        )
        expected = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    assert made.token_ids == expected[0, prompt.shape[1] :].tolist()
