"""A run so small that it starts and steps in moments, on text that it writes itself."""

from pathlib import Path

import yaml


def write_tiny_config(folder: Path, shared: Path, **sections: object) -> Path:
    """Write the config of a run into a folder; return its path.

    Args:
        folder: of the config and the run; made if it is missing.
        shared: where the text and the prepared data are, which several runs may have in common.
        sections: keys that are left to say, as steps, batch and optim, or to be said otherwise; one
            that is None is left out.
    """
    text = shared / "text"
    text.mkdir(exist_ok=True, parents=True)
    folder.mkdir(exist_ok=True)
    for number in range(40):
        lines = (f"def f{number}_{i}(x):\n    return x * {i} + {number}\n" for i in range(12))
        (text / f"{number}.py").write_text("".join(lines))
    config = {
        "run_folder": str(folder / "run"),
        "model": {
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        },
        "data": {
            "source": {"files": {"path": str(text)}},
            "tokenizer": {"sentencepiece": {"vocab_size": 300}},
            "seq_len": 32,
            "valid_fraction": 0.2,
            "cache_folder": str(shared / "data"),
            "num_processes": 1,
        },
        "layer_dropout": {"max_prob": 0.5},
        "exit_loss": {"e_scale": 0.5, "curriculum": "rotational", "rotation": 2},
        **sections,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))
    return path
