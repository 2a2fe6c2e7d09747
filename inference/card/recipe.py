"""The recipe and the data of a run as rows of tables, from its config and position.

The config is a mapping, perhaps of an older version: what it does not say has no row.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inference.card.facts import RunFacts

Row = tuple[str, str]
Section = Mapping[str, Any]

OVER_TIME = {"constant": "the same at all steps", "exp": "growing over training from 0"}
CURVES = {"exp": "2^(l/(L-1)) - 1 of that at layer l", "linear": "linear in depth", "uniform": ""}
EXITS = {"all": "all exits at every step", "gradual": "exits from the last down, all from half way"}


def shown(place: str) -> str:
    """Return a place as others may see it: of an absolute path only the name."""
    return Path(place).name if Path(place).is_absolute() else place


def code(value: object) -> str:
    """Return a value as code within a table of Markdown."""
    text = " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
    return f"`{text}`"


def section(content: Section, *names: str) -> Section:
    """Return a section of a config, or of a section in it; empty if there is none."""
    for name in names:
        found = content.get(name)
        content = found if isinstance(found, Mapping) else {}
    return content


def duration(seconds: float) -> str:
    """Return a time to two digits, in a unit that fits."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} seconds"


def recipe_rows(run: RunFacts) -> list[Row]:
    """Return how a checkpoint was trained."""
    config = run.config
    start = config.get("init_from")
    rows = [
        (
            "start",
            "fresh weights" if start is None else f"the weights of {code(shown(str(start)))}",
        ),
        ("layer dropout", _dropout(section(config, "layer_dropout"))),
        ("exit loss", _exit_loss(section(config, "exit_loss"))),
        ("adapters", _adapters(section(config, "lora"))),
        ("frozen", _listed(section(config, "freeze"))),
        ("optimiser", _optimiser(section(config, "optim"))),
        ("schedule", _schedule(section(config, "schedule"))),
        ("steps", _steps(run)),
        ("ranks", _ranks(run)),
        ("seed", str(config.get("seed", ""))),
        ("time", "" if run.seconds is None else f"{duration(run.seconds)} in steps"),
        ("code", _code(run)),
        ("packages", ", ".join(f"{name} {each}" for name, each in run.versions.items())),
    ]
    return [(name, text) for name, text in rows if text]


def _dropout(dropout: Section) -> str:
    if not dropout.get("max_prob"):
        return "none"
    curve = CURVES.get(str(dropout.get("curve")), "")
    over_time = OVER_TIME.get(str(dropout.get("over_time")), "")
    return "; ".join(x for x in (f"p_max {dropout['max_prob']}", curve, over_time) if x)


def _exit_loss(loss: Section) -> str:
    if not loss:
        return "none: only the last layer"
    if loss.get("curriculum") == "rotational":
        which = f"rotational, every {loss.get('rotation')} layers"
        which += ", and the last" if loss.get("include_last") else ""
    else:
        which = EXITS.get(str(loss.get("curriculum")), "")
    return f"e_scale {loss.get('e_scale')}; {which}"


def _adapters(lora: Section) -> str:
    return f"LoRA, {_listed(lora)}" if lora else ""


def _listed(values: Section) -> str:
    return ", ".join(f"{name} {code(each)}" for name, each in values.items() if each)


def _optimiser(optim: Section) -> str:
    if not optim:
        return ""
    betas = ", ".join(map(str, optim.get("betas") or ()))
    clip = optim.get("clip_norm")
    parts = [
        f"AdamW, lr {optim.get('lr')}, betas {betas}, weight decay {optim.get('weight_decay')}",
        f"gradients clipped at norm {clip}" if clip else "",
        f"layer decay {optim['layer_decay']}" if optim.get("layer_decay") else "",
        f"groups {', '.join(map(code, optim['groups']))}" if optim.get("groups") else "",
    ]
    return "; ".join(part for part in parts if part)


def _schedule(schedule: Section) -> str:
    if not schedule:
        return ""
    text = f"{schedule.get('kind')}, warm-up {schedule.get('warmup_steps')}"
    end = schedule.get("min_ratio")
    return f"{text}, down to {end} of the peak" if end else text


def _steps(run: RunFacts) -> str:
    sequences = section(run.config, "batch").get("global_size")
    length = section(run.config, "data").get("seq_len")
    text = f"{run.step:,}"
    if run.config.get("steps") is not None and run.config["steps"] != run.step:
        text += f" of {run.config['steps']:,}"
    if sequences and length:
        text += f", each {sequences:,} sequences of {length:,} positions"
    return text if run.tokens is None else f"{text}; {run.tokens:,} tokens"


def _ranks(run: RunFacts) -> str:
    parallel = section(run.config, "parallel")
    zero = section(parallel, "zero").get("stage")
    engine = "" if not parallel else f"DeepSpeed ZeRO-{zero}" if zero else "FSDP2"
    parts = ["" if run.ranks is None else str(run.ranks), engine, parallel.get("precision") or ""]
    return ", ".join(part for part in parts if part)


def _code(run: RunFacts) -> str:
    if run.commit is None:
        return ""
    return f"commit {code(run.commit[:12])}" + (", with changes" if run.is_changed else "")


def source_rows(run: RunFacts) -> list[tuple[str, str, str]]:
    """Return each source of a run's data: what it is, what a row of it is, its share."""
    data = section(run.config, "data")
    mixture = section(data, "mixture") or {"source": {"weight": 1, **section(data, "source")}}
    total = sum(each["weight"] for each in mixture.values())
    rows = ((_source(each), f"{each['weight'] / total:.1%}") for each in mixture.values())
    return [(*what, share) for what, share in rows if what is not None]


def _source(source: Section) -> tuple[str, str] | None:
    """Return what a source is, and what a row of it is."""
    hub, files = section(source, "hub"), section(source, "files")
    if hub:
        parts = [code(hub.get("name")), *(f"{k} {code(hub[k])}" for k in _HUB if hub.get(k))]
        return ", ".join(parts), str(hub.get("format", "text"))
    if files:
        pattern = f", {code(files['pattern'])}" if files.get("pattern") else ""
        return f"files {code(shown(str(files.get('path'))))}{pattern}", str(files.get("format"))
    if "stdlib" in source and source["stdlib"] is not None:
        most = section(source, "stdlib").get("max_megabytes")
        size = f", {most:g} MB of it" if most else ""
        return f"the source code of Python's standard library{size}", "text"
    return None


_HUB = ("config", "split", "revision")


def data_notes(run: RunFacts) -> Iterator[str]:
    """Yield what else there is to say of a run's data."""
    data = section(run.config, "data")
    tokenizer = section(data, "tokenizer")
    pieces = section(tokenizer, "sentencepiece").get("vocab_size")
    if pieces:
        yield f"Tokenizer: SentencePiece, {pieces:,} pieces, trained on this text."
    elif tokenizer.get("path"):
        yield f"Tokenizer: that of {code(shown(str(tokenizer['path'])))}."
    if data.get("seq_len"):
        packed = "documents are packed into it"
        if data.get("cross_document_attention") is False:
            packed += " and do not see each other"
        yield f"Sequence length: {data['seq_len']:,}; {packed}."
    if data.get("valid_fraction"):
        yield f"Held out for validation: {data['valid_fraction']:.1%} of the documents."


def hub_datasets(run: RunFacts) -> list[str]:
    """Return the ids of the hub's data sets that a run was trained on."""
    data = section(run.config, "data")
    sources = [section(data, "source"), *section(data, "mixture").values()]
    names = [section(each, "hub").get("name") for each in sources if isinstance(each, Mapping)]
    return sorted({str(name) for name in names if name and not Path(str(name)).exists()})
