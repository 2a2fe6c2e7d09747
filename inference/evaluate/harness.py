"""The one place that knows lm-evaluation-harness, an optional package (the extra `eval`)."""

import difflib
import importlib.util
from collections.abc import Sequence
from typing import Any

from inference.batch import BatchSettings
from inference.early_exit import check_exit
from inference.evaluate.config import EvalConfig
from inference.evaluate.likelihood import log_likelihoods
from inference.evaluate.questions import as_question, encode_text, first_token, rolling_questions
from inference.evaluate.texts import generate_texts
from inference.load import Loaded

RESAMPLES = 1000
"""Of lm-eval's bootstrap, for metrics without a formula for their error."""


def find_tasks(config: EvalConfig) -> Any:
    """Return lm-eval's TaskManager, once it is sure that it knows the tasks.

    Raises:
        RuntimeError: if lm-eval is not installed.
        ValueError: if a task is unknown.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise RuntimeError("eval needs lm-eval: install it, pip install -e '.[eval]'")
    from lm_eval.tasks import TaskManager

    if config.task_folder is not None:  # reading all of lm-eval's own tasks takes a while
        own = TaskManager(include_path=config.task_folder, include_defaults=False)
        if set(config.names) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=config.task_folder)
    for name in config.names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            remedy = f"did you mean {near[0]}?" if near else "name a folder of its own, task_folder"
            raise ValueError(f"tasks={config.tasks}: lm-eval has no task {name}; {remedy}")
    return manager


def as_lm(config: EvalConfig, loaded: Loaded) -> Any:
    """Return the model as an `lm_eval.api.model.LM`: at an exit, verified or not, or the whole.

    Raises:
        ValueError: if the model has no such exit, or max_length exceeds its context.
    """
    from lm_eval.api.model import LM

    context = loaded.config.max_position_embeddings
    if config.max_length is not None and config.max_length > context:
        raise ValueError(f"max_length={config.max_length}, but the model's context is {context}")
    if config.exit_layer is not None:
        check_exit(loaded.model, config.exit_layer)
    max_length = config.max_length or context
    depth = loaded.config.num_hidden_layers
    exit_layer = depth if config.verified or config.exit_layer is None else config.exit_layer

    def likelihoods(_: Any, requests: Sequence[Any], **__: Any) -> list[tuple[float, bool]]:
        questions = [as_question(loaded, *request.args) for request in requests]
        found = log_likelihoods(
            loaded.model,
            questions,
            exit_layer=exit_layer,
            batch_size=config.batch_size,
            max_length=max_length,
        )
        return [(each.logprob, each.is_greedy) for each in found]

    def rolling(_: Any, requests: Sequence[Any], **__: Any) -> list[float]:
        first, sums = first_token(loaded), list[float]()
        for request in requests:
            ids = encode_text(loaded, request.args[0])
            found = log_likelihoods(
                loaded.model,
                rolling_questions(ids, first, max_length),
                exit_layer=exit_layer,
                batch_size=config.batch_size,
                max_length=max_length,
            )
            sums.append(sum(each.logprob for each in found))
        return sums

    def texts(_: Any, requests: Sequence[Any], **__: Any) -> list[str]:
        return generate_texts(
            loaded,
            [request.args for request in requests],
            batch=_batch(config),
            max_length=max_length,
            seed=config.seed,
        )

    methods = {
        "loglikelihood": likelihoods,
        "loglikelihood_rolling": rolling,
        "generate_until": texts,
    }
    return type("SkipstoneLM", (LM,), methods)()


def _batch(config: EvalConfig) -> BatchSettings:
    return BatchSettings(
        rows=config.batch_size,
        exit_layer=config.exit_layer,
        num_speculations=config.speculations if config.verified else 0,
        is_verified=config.verified or config.exit_layer is None,
    )


def evaluate(config: EvalConfig, loaded: Loaded, manager: Any) -> dict[str, Any]:
    """Return what lm-eval's `simple_evaluate` returns.

    Raises:
        ValueError: if the model has no such exit, or a task wants what it cannot do.
        RuntimeError: if a task's data cannot be had.
    """
    from lm_eval import simple_evaluate

    model = as_lm(config, loaded)
    try:
        found = simple_evaluate(
            model,
            tasks=config.names,
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            bootstrap_iters=RESAMPLES,
            log_samples=False,
            task_manager=manager,
        )
    except OSError as error:
        reason = " ".join(str(error).split())
        raise RuntimeError(
            f"tasks={config.tasks}: their data cannot be had ({reason}): check the connection, or "
            "use tasks with local data, task_folder"
        ) from None
    return dict(found)
