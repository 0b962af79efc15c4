"""Server of a rollout engine: vLLM behind the protocol of :mod:`stages.lib.engine.wire`.

Runs in the engine's environment (``make vllm``), which has none of this project's dependencies:
``.tools/engine/bin/python -m stages.lib.engine_server --model FOLDER --socket PATH``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import os
import platform
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.lib.engine import wire
from stages.lib.engine.wire import Question, Reply, Sampling, Video
from stages.lib.engine_server.app import (
    Answering,
    Died,
    OutOfMemory,
    Refused,
    end_group,
    end_with_parent,
)
from stages.lib.engine_server.normalising import normalises_alike
from stages.lib.engine_server.options import key_of, options_of, weights_of
from stages.lib.inference.seeds import seed_number

log = logging.getLogger(__name__)

#: Tokens that are read at once on a CPU, or the longest prompt.
_CPU_TOKENS = 8192
_GIB = 1 << 30
#: Requests in progress may take this long to end when the server is asked to.
_GRACE_S = 5


class TakesWeights:
    """Extension of vLLM's workers, in whose processes it runs: reads new weights.

    vLLM 0.32 on a CPU multiplies by copies of matrices in another layout. It makes new ones where
    it reads new weights, but not of the embedding that is the output layer as well: without this,
    the old output layer would draw.
    """

    model_runner: Any

    def take_weights(self, folder: str) -> None:
        """Read the weights of a folder in the form of a published model."""
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

        self.model_runner.reload_weights(weights_path=folder)
        for layer in self.model_runner.get_model().modules():
            if isinstance(layer, VocabParallelEmbedding) and hasattr(layer, "cpu_linear"):
                layer.quant_method.process_weights_after_loading(layer)


class VllmEngine:
    """vLLM's asynchronous engine. Make it within a running event loop."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        import transformers
        import vllm
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        if not vllm.__version__.startswith(tuple(f"{release}." for release in wire.VLLM_RELEASES)):
            sys.exit(
                f"error: vLLM {vllm.__version__}, and {', '.join(wire.VLLM_RELEASES)} is needed; build the environment"
                f" again (make vllm)"
            )
        on_cpu = current_platform.is_cpu()
        self.versions: Mapping[str, str] = {
            "python": platform.python_version(),
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        self.model = str(options.model)
        self.device = "cpu" if on_cpu else current_platform.get_device_name()
        self._ids = itertools.count()
        # On a CPU the share would be of all memory, whoever else uses it.
        cache_gb = 1.0 if options.kv_cache_gb is None and on_cpu else options.kv_cache_gb
        memory = {} if cache_gb is None else {"kv_cache_memory_bytes": int(cache_gb * _GIB)}
        self._llm: Any = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=self.model,
                dtype=options.dtype,
                max_model_len=options.max_model_len,
                seed=options.seed,
                tensor_parallel_size=options.gpus,
                # On a CPU vLLM would start a worker process, to bind threads to cores, which nobody
                # does here; and wait for it in a loop that takes a core from training.
                distributed_executor_backend=UniProcExecutor if on_cpu else None,
                enforce_eager=on_cpu,
                enable_prefix_caching=True,
                # A prompt's parts draw, too: taking a draw back ends vLLM with a CPU's generators.
                enable_chunked_prefill=not on_cpu,
                max_num_batched_tokens=max(options.max_model_len, _CPU_TOKENS) if on_cpu else None,
                logprobs_mode="processed_logprobs",
                # Its sampling defaults and the tokens that end a reply come with each request.
                generation_config="vllm",
                limit_mm_per_prompt={"image": 0, "video": options.videos},
                # Profiling finds what the largest video takes of a GPU's memory.
                skip_mm_profiling=on_cpu,
                mm_device_do_normalize=None if normalises_alike(options.model) else False,
                worker_extension_cls=f"{TakesWeights.__module__}.{TakesWeights.__name__}",
                enable_log_requests=False,
                disable_log_stats=True,
                gpu_memory_utilization=options.memory,
                **memory,
            )
        )

    async def generate(
        self, question: Question, videos: Sequence[Video], seeds: Sequence[str | None], sampling: Sampling
    ) -> tuple[list[int], list[Reply]]:
        """See :class:`~stages.lib.engine_server.app.Engine`.

        Raises:
            Refused: vLLM refuses the request.
            Died: vLLM ended.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        def params(seed: str | None) -> Any:
            return SamplingParams(
                temperature=0.0 if seed is None else sampling.temperature,
                seed=None if seed is None else seed_number(seed),
                max_tokens=sampling.max_tokens,
                min_tokens=sampling.min_tokens,
                stop_token_ids=list(sampling.ends),
                # The ends are those of the request alone.
                ignore_eos=True,
                # Added to the logits. Only vLLM's OpenAI server limits it to 100.
                logit_bias=dict.fromkeys(sampling.suppressed, float("-inf")) or None,
                logprobs=0 if sampling.logps else None,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )

        try:
            chosen = [params(seed) for seed in seeds]
        except (VLLMClientError, ValueError) as error:
            raise Refused(str(error)) from error
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._reply(_prompt(question, videos), each, sampling)) for each in chosen]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        outputs = [task.result() for task in tasks]
        return (outputs[0][0] if outputs else []), [reply for _, reply in outputs]

    async def _reply(self, prompt: dict[str, Any], params: Any, sampling: Sampling) -> tuple[list[int], Reply]:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            (output,) = [each async for each in self._llm.generate(prompt, params, f"r{next(self._ids)}")]
        except EngineDeadError as error:
            raise Died(f"vLLM ended ({error})") from error
        except (VLLMClientError, ValueError) as error:
            raise Refused(str(error)) from error
        except EngineGenerateError as error:
            cause = error.__cause__ or error
            if isinstance(cause, MemoryError) or "out of memory" in str(cause).lower():
                raise OutOfMemory(str(cause)) from error
            raise Refused(f"{type(cause).__name__}: {cause}") from error
        (drawn,) = output.outputs
        if drawn.finish_reason not in ("stop", "length"):
            raise Refused(f"vLLM ended a reply with {drawn.finish_reason!r}")
        ids = list(drawn.token_ids)
        if drawn.finish_reason == "length" and len(ids) < sampling.max_tokens:
            # vLLM shortens replies in silence.
            raise Refused(
                f"a prompt of {len(output.prompt_token_ids)} tokens and a reply of {sampling.max_tokens} are longer"
                f" than its --max-model-len"
            )
        logps = (
            [place[token].logprob for token, place in zip(ids, drawn.logprobs, strict=True)] if sampling.logps else []
        )
        return list(output.prompt_token_ids), Reply(ids, logps, "end" if drawn.finish_reason == "stop" else "length")

    async def load_weights(self, folder: Path) -> None:
        """See :class:`~stages.lib.engine_server.app.Engine`.

        Raises:
            Died: vLLM ended, or cannot read these weights, and holds neither the old nor the new.
        """
        llm = self._llm
        try:
            # Requests whose clients left may still be there.
            await llm.pause_generation(mode="abort", clear_cache=False)
            await llm.collective_rpc("take_weights", args=(str(folder),))
            # All that was computed with the old weights: keys and values, and the videos' features
            # (of which the worker has forgotten its own, and the scheduler would rely on them).
            if not await llm.reset_prefix_cache():
                raise Died("vLLM kept the keys and values of the old weights")
            await llm.reset_encoder_cache()
            # It holds processed pixels, which are the same with any weights, on two sides that must
            # agree.
            await llm.reset_mm_cache()
            await llm.resume_generation()
        except Died:
            raise
        except Exception as error:
            raise Died(f"vLLM did not load the weights of {folder} ({type(error).__name__}: {error})") from error

    def close(self) -> None:
        """End vLLM's processes."""
        self._llm.shutdown()


def _prompt(question: Question, videos: Sequence[Video]) -> dict[str, Any]:
    """vLLM's prompt. It expands the placeholders itself, and frames are neither sampled again nor
    hashed."""
    prompt: dict[str, Any] = {"prompt_token_ids": list(question.prompt_ids)}
    if videos:
        prompt["multi_modal_data"] = {"video": [(video.pixels, _metadata(video)) for video in videos]}
        prompt["multi_modal_uuids"] = {"video": list(question.videos)}
        prompt["mm_processor_kwargs"] = {"do_sample_frames": False}
    return prompt


def _metadata(video: Video) -> dict[str, Any]:
    # A list of its own: the processor of Qwen3-VL pads it in place if the number of frames is odd.
    indices = list(video.metadata["frames_indices"])
    return {**video.metadata, "frames_indices": indices, "do_sample_frames": False}


def serve(make: Any, options: argparse.Namespace) -> None:
    """Make an engine, and answer for it until SIGTERM, Ctrl-C, its death, or that of the parent.

    Args:
        make: makes the engine from the options, within the event loop.
    """
    import uvicorn

    key = key_of(options)
    if os.getpgrp() != os.getpid():
        os.setpgrp()
    if options.parent is not None:
        end_with_parent(options.parent)
    # Until there is a loop, which vLLM's start blocks, nothing can be closed in order.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end_group())

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    async def run() -> int:
        engine = make(options)
        died: list[bool] = []

        def leave() -> None:
            server.should_exit = True

        def on_death() -> None:
            died.append(True)
            leave()

        answering = Answering(
            engine,
            weights=weights_of(options),
            key=key,
            video_bytes=int(options.video_gb * _GIB),
            on_death=on_death,
        )
        server = Server(
            uvicorn.Config(
                answering.app(),
                uds=None if options.socket is None else str(options.socket),
                host=options.host,
                port=options.port or 0,
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=_GRACE_S,
                timeout_keep_alive=3600,
            )
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, leave)
        try:
            await server.serve()
        finally:
            engine.close()
        return 1 if died else 0

    status = asyncio.run(run())
    sys.stdout.flush()
    # Whatever vLLM left running ends with this group, but its exit status would be lost with it.
    with contextlib.suppress(ProcessLookupError):
        _end_others()
    os._exit(status)


def _end_others() -> None:
    """Kill the other processes of this group."""
    import psutil

    group = os.getpid()
    for process in psutil.process_iter(["pid"]):
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if process.pid != group and os.getpgid(process.pid) == group:
                process.kill()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the server of a vLLM engine."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    serve(VllmEngine, options_of(arguments))
