"""An environment for each peer, made once: its own packages in front of ours, and our torch.

A peer's environment is a venv that sees the packages of this interpreter after its own. So every
side runs on the same build of torch, nothing is downloaded twice, and no peer can move our pins.
All requirements are exact and installed without their dependencies: those that matter for training
are listed, and what a peer pins against us (litgpt: an old huggingface-hub, for downloads only) is
left out.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from configs.command import ROOT

FOLDER = ROOT / "runs" / "benchmarks" / "envs"

REQUIREMENTS = {
    "hf_trainer": ("accelerate==1.15.0",),
    "torchtune": (
        "torchtune==0.6.1",
        "torchao==0.15.0",  # the newest that torchtune 0.6.1 can import
        "torchdata==0.11.0",
        "tiktoken==0.14.0",
        "blobfile==3.3.0",
        "pycryptodomex==3.24.2",
        "lxml==6.1.3",
        "kagglehub==1.0.2",
        "kagglesdk==0.1.37",
    ),
    "litgpt": (
        "litgpt==0.5.13",
        "lightning==2.6.6",
        "pytorch-lightning==2.6.6",
        "lightning-utilities==0.15.3",
        "torchmetrics==1.9.0",
        "jsonargparse==4.41.0",
        "docstring-parser==0.18.0",
        "typeshed-client==2.14.0",
    ),
}

STAMP = "installed.json"


def environment(name: str, folder: Path = FOLDER) -> Path:
    """Return the interpreter of a peer's environment, which is made first if there is none.

    Args:
        name: a key of `REQUIREMENTS`.
        folder: holds the environments.

    Raises:
        RuntimeError: if its packages cannot be installed; with pip's last line.
    """
    here, base = folder / name, sysconfig.get_paths()["purelib"]
    python, stamp = here / "bin" / "python", here / STAMP
    wanted = json.dumps({"base": base, "requirements": REQUIREMENTS[name]})
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(here, ignore_errors=True)  # left by an interrupted or an older benchmark
    venv.create(here, with_pip=False, symlinks=True)
    layered = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    (Path(layered.stdout.strip()) / "base.pth").write_text(base + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*pip, "--no-compile", *REQUIREMENTS[name]], capture_output=True, text=True
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise RuntimeError(f"pip could not install {name}: {said[-1] if said else done.stderr}")
    stamp.write_text(wanted)
    return python
