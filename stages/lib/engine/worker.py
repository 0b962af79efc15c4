"""Part of the rollout engine inside vLLM's worker processes, which import it by its name."""

from __future__ import annotations

from typing import Any


class TakesWeights:
    """Extension of vLLM's worker: reads new weights.

    vLLM 0.32 on a CPU multiplies by copies of matrices in another layout. It makes new ones where
    it reads new weights, but not of the embedding that is the output layer as well: without this,
    the old output layer would draw.
    """

    model_runner: Any

    def take_weights(self, folder: str) -> None:
        """Read the weights of a folder in the form of a published model."""
        self.model_runner.reload_weights(weights_path=folder)

        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

        for layer in self.model_runner.get_model().modules():
            if isinstance(layer, VocabParallelEmbedding) and hasattr(layer, "cpu_linear"):
                layer.quant_method.process_weights_after_loading(layer)
