"""What a data section names and this machine does not have, found without reading any of it."""

from pathlib import Path

from data_pipelines.config import DataConfig
from data_pipelines.tokenize import may_be_hub_id


def missing_files(config: DataConfig) -> list[str]:
    """Return the keys, each with its value, of files and folders that are not here.

    What may be the id of something on the hub is not looked for.
    """
    found = []
    for name, source in config.sources.items():
        if source.files is not None and not Path(source.files.path).exists():
            key = "data.source" if config.mixture is None else f"data.mixture.{name}"
            found.append(f"{key}.files.path={source.files.path}")
    tokenizer = config.tokenizer.path
    if (
        tokenizer is not None
        and not Path(tokenizer).exists()
        and not may_be_hub_id(Path(tokenizer))
    ):
        found.append(f"data.tokenizer.path={tokenizer}")
    return found
