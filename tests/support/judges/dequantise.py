"""Weights of a GGUF file as an ordinary folder: ``python -m tests.support.judges.dequantise FILE
FOLDER``.

vLLM 0.32 reads no GGUF; transformers does, with the package ``gguf`` on ``PYTHONPATH``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(file: Path, folder: Path) -> None:
    """Write the model in single precision, with its tokenizer and chat template."""
    tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # transformers 5.23 still calls it quantised, and would not save it.
    model.hf_quantizer = None
    del model.config.quantization_config
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
