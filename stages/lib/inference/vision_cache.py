"""The vision tower sees equal videos once: the rollouts of a prompt all look at the same one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch

#: Stands for a video: see :func:`fingerprint`.
Fingerprint = tuple[float, float, int, int, int]
#: What the vision tower made of one video: its features, and those of the layers that are tapped.
Feature = tuple[torch.Tensor, list[torch.Tensor]]


def encode_equal_videos_once(model: Any) -> None:
    """Let the vision tower see each distinct video of a batch once: the rollouts of a prompt all look at the same one.

    The features, and the gradients through them, are those of the stock method; only the repetition is gone. Where the tower is frozen,
    the features of a video are kept, so that rollouts, log-probabilities and loss share one pass, and so do later steps. Under ZeRO-3 all
    processes pass through the tower or none.
    """
    backbone = model.base_model
    stock = backbone.get_video_features
    kept = _KeptFeatures(FEATURE_BYTES)

    def get_video_features(pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor, **kwargs: Any) -> Any:
        videos = pixel_values_videos.split(video_grid_thw.prod(-1).tolist())
        index_of = equal_to(videos, video_grid_thw.tolist())
        distinct = sorted(set(index_of))
        frozen = not any(weight.requires_grad for weight in backbone.visual.parameters())
        if frozen:
            keys = {i: fingerprint(videos[i], video_grid_thw[i]) for i in distinct}
            missing = [i for i in distinct if keys[i] not in kept]
            if _scattered(backbone.visual) and _any_process(bool(missing), pixel_values_videos.device):
                missing = missing or distinct[:1]
        else:
            missing = distinct
        fresh: dict[int, Any] = {}
        features: Any = None
        if missing:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                features = stock(torch.cat([videos[i] for i in missing]), video_grid_thw[missing], **kwargs)
            layers = getattr(features, "deepstack_features", None) or []  # Qwen3-VL: one list a tapped layer
            fresh = {i: (features.pooler_output[n], [layer[n] for layer in layers]) for n, i in enumerate(missing)}
        if frozen:
            # Cloned: what the tower returns are views into the features of all, which one of them would keep alive.
            fresh = {i: (pooled.clone(), [layer.clone() for layer in layers]) for i, (pooled, layers) in fresh.items()}
            fresh |= {i: kept.take(keys[i]) for i in distinct if i not in fresh}
            features = kept.keep({keys[i]: fresh[i] for i in missing}, features)
        features.pooler_output = tuple(fresh[i][0] for i in index_of)
        if getattr(features, "deepstack_features", None) is not None:
            tapped = len(fresh[distinct[0]][1])
            features.deepstack_features = [tuple(fresh[i][1][layer] for i in index_of) for layer in range(tapped)]
        return features

    backbone.get_video_features = get_video_features


#: Features of videos that are kept where the vision tower is frozen.
FEATURE_BYTES = 1 * 2**30


class _KeptFeatures:
    """Features by their video's fingerprint; the least recently used go when they take more than ``most_bytes``."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held_bytes = 0
        self._features: OrderedDict[Fingerprint, Feature] = OrderedDict()
        self._output: Any = None

    def __contains__(self, key: Fingerprint) -> bool:
        return key in self._features

    def take(self, key: Fingerprint) -> Feature:
        self._features.move_to_end(key)
        return self._features[key]

    def keep(self, fresh: Mapping[Fingerprint, Feature], output: Any) -> Any:
        """Keep these, and return an output of the model's own kind to put features into."""
        if output is not None:
            self._output = copy(output)
            self._output.last_hidden_state = None  # of all videos at once, and read by nobody
        for key, feature in fresh.items():
            self._features[key] = feature
            self._held_bytes += _bytes(feature)
        while self._held_bytes > self._most_bytes and len(self._features) > 1:
            self._held_bytes -= _bytes(self._features.popitem(last=False)[1])
        return copy(self._output)


def _scattered(tower: torch.nn.Module) -> bool:
    """Whether ZeRO-3 keeps the tower's weights in parts. A pass through it then gathers them, so every process has to make it or none."""
    return any(hasattr(weight, "ds_id") for weight in tower.parameters())


def _any_process(mine: bool, device: torch.device) -> bool:
    """Whether this is so in any process; all of them have to ask."""
    flag = torch.tensor([int(mine)], device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def _bytes(feature: Feature) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (feature[0], *feature[1]))


def fingerprint(video: torch.Tensor, grid: torch.Tensor) -> Fingerprint:
    """Two sums of a video's values in double precision, one of them weighted by place, and its shape: no two videos share all of them
    but by a chance of the order of rounding."""
    values = video.flatten().double()
    weights = torch.arange(1, len(values) + 1, device=values.device, dtype=torch.double).sqrt()
    time, height, width = (int(n) for n in grid)
    return float(values.sum()), float(values @ weights), time, height, width


def equal_to(videos: Sequence[torch.Tensor], grids: Sequence[Sequence[int]]) -> list[int]:
    """For each video the index of the first that equals it, bit by bit and in shape (black videos of two shapes differ in it only)."""
    # The sum only says which comparisons are worth making.
    sums = torch.stack([video.sum(dtype=torch.float64) for video in videos]).tolist()
    firsts: dict[tuple[float, *tuple[int, ...]], list[int]] = {}
    found: list[int] = []
    for i, video in enumerate(videos):
        candidates = firsts.setdefault((sums[i], *grids[i]), [])
        first = next((j for j in candidates if torch.equal(videos[j], video)), None)
        if first is None:
            candidates.append(i)
        found.append(i if first is None else first)
    return found
