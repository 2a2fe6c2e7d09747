import json
from pathlib import Path
from typing import Any

import pytest

from parallel.config import FsdpConfig, ParallelConfig, ZeroConfig
from parallel.zero_config import PASSED_ON, check_user_config, decided, to_deepspeed

RECIPE = {"train_batch_size": 16, "gradient_clipping": 1.0}


def zero(folder: Path | None = None, content: Any = None, **changes: Any) -> ParallelConfig:
    """A config that names a DeepSpeed JSON of this content."""
    path = None
    if folder is not None:
        path = str(folder / "deepspeed.json")
        Path(path).write_text(content if isinstance(content, str) else json.dumps(content))
    return ParallelConfig(zero=ZeroConfig(stage=3, deepspeed_config=path), **changes)


def refusal(folder: Path, content: Any, **changes: Any) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        check_user_config(zero(folder, content, **changes), RECIPE)
    return str(error.value)


def test_both_sections_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fsdp and parallel\.zero are both given: leave out one"):
        ParallelConfig(fsdp=FsdpConfig(), zero=ZeroConfig(stage=1))


def test_compiling_under_stage_3_is_refused() -> None:
    with pytest.raises(ValueError, match="set compile to false, or stage to 1 or 2"):
        zero(compile=True)
    assert ParallelConfig(zero=ZeroConfig(stage=2), compile=True).compile


def test_what_repeats_our_config_is_accepted(tmp_path: Path) -> None:
    content = {
        "train_batch_size": 16,
        "gradient_clipping": "auto",
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "none"}},
    }
    check_user_config(zero(tmp_path, content, precision="bfloat16"), RECIPE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train_batch_size": 32}, "train_batch_size is 32, but this run's config says 16"),
        ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5, but this run's config says 1.0"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is true, but this run's config says false"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is true, but this run's config says false"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage is 2, but"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler is set by schedule here: remove it"),
        ({"optimizer": {"type": "Adam"}}, "optimizer is set by optim here: remove it"),
        ({"progressive_layer_drop": {"enabled": True}}, "is set by layer_dropout here: remove it"),
        ({"zero_optimization": {"zero_hpz_partition_size": 8}}, "zero_hpz_partition_size is not"),
        ({"wall_clock_breakdwon": True}, "wall_clock_breakdwon is not among the settings"),
        ("{", "no JSON: "),
        ("[]", "no JSON object"),
    ],
)
def test_what_contradicts_our_config_is_refused_by_its_key(
    tmp_path: Path, content: Any, message: str
) -> None:
    assert message in refusal(tmp_path, content)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    config = ParallelConfig(zero=ZeroConfig(stage=1, deepspeed_config=str(tmp_path / "no.json")))
    with pytest.raises(ValueError, match=r"no\.json: No such file"):
        check_user_config(config, RECIPE)


def test_settings_of_speed_are_passed_on_and_decided_ones_stay(tmp_path: Path) -> None:
    content = {
        "wall_clock_breakdown": True,
        "train_batch_size": "auto",
        "zero_optimization": {"reduce_bucket_size": 123, "stage": "auto"},
    }
    settings = to_deepspeed(zero(tmp_path, content), 1000)
    assert settings["wall_clock_breakdown"] is True
    assert settings["zero_optimization"]["reduce_bucket_size"] == 123
    assert settings["zero_optimization"]["stage"] == 3
    assert "train_batch_size" not in settings


def test_buckets_are_no_larger_than_the_model() -> None:
    assert to_deepspeed(zero(), 1000)["zero_optimization"]["reduce_bucket_size"] == 1000


def test_no_key_is_both_decided_and_passed_on() -> None:
    assert not PASSED_ON & decided(zero()).keys()
