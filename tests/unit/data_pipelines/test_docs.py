import re
from pathlib import Path

import pytest

from configs.command import ROOT
from configs.load import load_section
from data_pipelines.config import DataConfig

BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.S)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_section_of_the_page_loads(tmp_path: Path, block: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(block)
    assert load_section(DataConfig, path, "data").seq_len in (1024, 2048)


def test_the_page_has_every_format() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    for name in ("prompt_response", "chat", "top_v2", "gsm8k", "human_eval", "cnn_dm", "xsum"):
        assert f"| `{name}` |" in page
    assert len(BLOCKS) == 6
