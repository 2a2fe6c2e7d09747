"""The Llama model: embedding, layers, norm and head. It holds no policy: plans say what runs.

Letters: B rows, S positions, D width, V vocabulary.
"""

from typing import cast

from torch import Tensor, nn
from torch.nn.functional import linear

from models.config import LlamaConfig
from models.execute import Call, plain_call, run_plan
from models.layer import Layer
from models.norm import RMSNorm
from models.plan import LayerPlan
from models.tokens import Tokens


class Trunk(nn.Module):
    """Everything below the head; the name `model` of it gives parameters their upstream names."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleDict(
            {str(layer): Layer(config, layer) for layer in range(config.num_hidden_layers)}
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class Llama(nn.Module):
    """A Llama whose forward pass executes a plan; parameter names are those of transformers."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.run_plan = run_plan
        """Who runs plans; another form of the model may know a faster way of doing the same."""
        self.model = Trunk(config)
        self.lm_head: nn.Module | None = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def layers(self) -> nn.ModuleDict:
        """The layers by global id."""
        return self.model.layers

    def head_parameters(self) -> list[nn.Parameter]:
        """Return what `unembed` uses: the final norm's weight (D,) and the head's matrix (V, D)."""
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return [self.model.norm.weight, cast(nn.Parameter, head.weight)]

    def forward(
        self, ids: Tensor, tokens: Tokens, plan: LayerPlan, call: Call = plain_call
    ) -> dict[int, Tensor]:
        """Run a plan on token ids (B, S) or, to go on from an exit, on hidden states (B, S, D).

        Returns:
            For each exit of the plan, the residual stream (B, S, D) there; `unembed` makes logits.
        """
        h = self.model.embed_tokens(ids) if ids.dim() == 2 else ids
        return self.run_plan(plan, self.layers, h, tokens, call)

    def unembed(self, h: Tensor) -> Tensor:
        """Return logits (..., V) of hidden states (..., D) at any exit: one norm and one head."""
        h = self.model.norm(h)
        if self.lm_head is None:
            return linear(h, self.model.embed_tokens.weight)
        return cast(Tensor, self.lm_head(h))
