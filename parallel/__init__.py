"""Processes, sharding and checkpoints: the only package that imports torch.distributed."""
