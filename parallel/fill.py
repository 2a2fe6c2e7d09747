"""How an engine is given the values of its weights."""

from collections.abc import Callable

from models.init import Assign
from models.llama import Llama

Fill = Callable[[Llama, Assign], None]
"""Gives a model its values: calls the second on each parameter with its whole tensor."""
