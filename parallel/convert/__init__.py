"""From one kind of checkpoint to another: `python -m parallel.convert SRC DST to=dcp|zero|hf`."""
