"""Command line of a rollout engine's server: where it listens, with which key, in how much memory.

Like the server, it runs in the engine's environment, with the standard library alone.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.lib.engine import wire


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.lib.engine_server",
        description="Server of a rollout engine.",
        epilog="It speaks the protocol of stages.lib.engine.wire.",
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--socket", type=Path, help="Unix socket to listen on")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on, with --port")
    parser.add_argument("--port", type=int, help="port to listen on; other addresses than loopback need a key")
    parser.add_argument("--name", help="name of the model's weights; default: that in its weights.json, else empty")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--max-model-len", type=int, required=True, help="tokens of a prompt and its reply")
    parser.add_argument("--videos", type=int, default=1, help="videos of a prompt, at most")
    parser.add_argument("--video-gb", type=float, default=4.0, help="memory for frames, in GiB")
    parser.add_argument(
        "--kv-cache-gb",
        type=float,
        help="memory for keys and values, in GiB; default: what --memory leaves, on a CPU 1",
    )
    parser.add_argument("--memory", type=float, default=0.9, help="share of each GPU's memory")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that hold the model together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parent", type=int, help="process with which the server ends; it started the server")
    options = parser.parse_args(arguments)
    if (options.socket is None) == (options.port is None):
        parser.error("name --socket or --port")
    if not (options.model / "config.json").is_file():
        parser.error(f"--model: {options.model} holds no config.json")
    options.model = options.model.resolve()
    return options


def key_of(options: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> str | None:
    """Read the key from VIDBRIDGE_ENGINE_KEY.

    Raises:
        SystemExit: there is none, and others than this machine's users can reach the server.
    """
    key = environ.get("VIDBRIDGE_ENGINE_KEY", "").strip() or None
    if key is None and options.socket is None and not _is_loopback(options.host):
        sys.exit(
            f"error: --host: {options.host} can be reached from elsewhere, and VIDBRIDGE_ENGINE_KEY is not set; set a"
            f" key, or listen on 127.0.0.1"
        )
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def weights_of(options: argparse.Namespace) -> str:
    """Name of the weights in the model's folder."""
    if options.name is not None:
        return str(options.name)
    if not (options.model / wire.MANIFEST).is_file():
        return ""
    return wire.read_manifest(options.model).name
