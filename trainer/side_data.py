"""The side data of a batch, on the device that computes."""

import torch

from data_pipelines.loader import Batch
from models.config import LlamaConfig
from models.tokens import Tokens, make_tokens


def batch_tokens(batch: Batch, config: LlamaConfig, device: torch.device) -> Tokens:
    """Return the side data of a batch's (B, S) positions on a device."""
    documents = None if batch.documents is None else batch.documents.to(device)
    return make_tokens(config, batch.positions.to(device), documents=documents)
