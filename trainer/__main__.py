"""`python -m trainer CONFIG [key=value ...]`, alone or under torchrun."""

import sys

from configs.command import run_command
from configs.help import help_text
from configs.load import load
from parallel.timeouts import is_lost_rank
from parallel.world import start, stop
from trainer.build import build_run
from trainer.check import check_report
from trainer.config import PretrainConfig
from trainer.evaluation import evaluating
from trainer.loop import train
from trainer.signals import StopRequest, stop_with_launcher

USAGE = """usage: torchrun --nproc-per-node N -m trainer CONFIG [key=value ...]
       python -m trainer CONFIG [key=value ...]           on one process
       python -m trainer CONFIG --check [key=value ...]   say what it would do, and exit

Train a Llama with layer dropout and early-exit loss. CONFIG is a YAML file such as
configs/pretrain/quickstart.yaml; any of these keys may be changed on the command line:
"""


def main(arguments: list[str]) -> None:
    """Train what the command line describes.

    Raises:
        ConnectionError: if another rank does not answer, at whatever time.
    """
    flags = [a for a in arguments if a.startswith("-")]
    if {"-h", "--help"} & set(flags):
        sys.stdout.write(f"{USAGE}\n{help_text(PretrainConfig)}\n")
        return
    unknown = [flag for flag in flags if flag != "--check"]
    positional = [a for a in arguments if not a.startswith("-")]
    if unknown:
        raise ValueError(f"unknown option {unknown[0]}; there are --check and --help")
    if not positional or "=" in positional[0]:
        raise ValueError("no CONFIG: name a YAML file first, such as configs/pretrain/debug.yaml")
    config = load(PretrainConfig, positional[0], positional[1:])
    if config.evaluate is not None:
        config.evaluate.check_here()
    if "--check" in flags:
        sys.stdout.write(check_report(config))
        return
    stop_with_launcher()
    try:
        world = start(
            device=config.parallel.device, timeout_seconds=config.parallel.long_timeout_seconds
        )
        run = build_run(config, world)
        with evaluating(config, is_first=world.is_first) as finish_evaluation:
            asked_to_stop = StopRequest()
            is_over = train(run, asked_to_stop)
            stop()
            if is_over:
                finish_evaluation(asked_to_stop)
    except Exception as error:
        if isinstance(error, ConnectionError) or not is_lost_rank(error):
            raise
        raise ConnectionError(f"a rank did not answer: {error}") from error


if __name__ == "__main__":
    run_command(main)
