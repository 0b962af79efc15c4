"""Cache of vision features: equal videos pass through the vision tower once, since all rollouts of
a prompt share one video."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from typing import Any

import torch

from stages.lib.models.sharded import is_scattered

#: Identifies a video: see :func:`fingerprint`.
Fingerprint = tuple[float, float, int, int, int]
#: Output of the vision tower for one video: its features, and those of the tapped layers.
Feature = tuple[torch.Tensor, list[torch.Tensor]]


def encode_equal_videos_once(model: Any) -> None:
    """Patch the model to encode each distinct video of a batch once, since all rollouts of a prompt
    share one video.

    The features, and the gradients through them, equal those of the stock method; only the
    repetition is gone. If the tower is frozen, the features of a video are cached, so rollouts,
    log-probabilities, loss and later steps share one pass. Under ZeRO-3 and FSDP2 either all
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
            if _scattered(backbone.visual) and any_process(bool(missing), pixel_values_videos.device):
                missing = missing or distinct[:1]
        else:
            missing = distinct
        fresh: dict[int, Any] = {}
        features: Any = None
        if missing:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                features = stock(torch.cat([videos[i] for i in missing]), video_grid_thw[missing], **kwargs)
            layers = getattr(features, "deepstack_features", None) or []  # Qwen3-VL: one list per tapped layer
            fresh = {i: (features.pooler_output[n], [layer[n] for layer in layers]) for n, i in enumerate(missing)}
        if frozen:
            # Cloned: the tower returns views into the features of all videos, and one view would
            # keep all of them alive.
            fresh = {i: (pooled.clone(), [layer.clone() for layer in layers]) for i, (pooled, layers) in fresh.items()}
            fresh |= {i: kept.take(keys[i]) for i in distinct if i not in fresh}
            features = kept.keep({keys[i]: fresh[i] for i in missing}, features)
        features.pooler_output = tuple(fresh[i][0] for i in index_of)
        if getattr(features, "deepstack_features", None) is not None:
            tapped = len(fresh[distinct[0]][1])
            features.deepstack_features = [tuple(fresh[i][1][layer] for i in index_of) for layer in range(tapped)]
        return features

    backbone.get_video_features = get_video_features


#: Values of a video, spread over it, that are compared before all of them are.
_COMPARED = 64
#: Most bytes of cached features, if the vision tower is frozen.
FEATURE_BYTES = 1 * 2**30


class _KeptFeatures:
    """Features by their video's fingerprint; beyond ``most_bytes`` the least recently used are
    dropped."""

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
        """Cache these, and return a copy of the model's output object to put features into."""
        if output is not None:
            self._output = copy(output)
            self._output.last_hidden_state = None  # of all videos at once, and never read
        for key, feature in fresh.items():
            self._features[key] = feature
            self._held_bytes += _bytes(feature)
        while self._held_bytes > self._most_bytes and len(self._features) > 1:
            self._held_bytes -= _bytes(self._features.popitem(last=False)[1])
        return copy(self._output)


def _scattered(tower: torch.nn.Module) -> bool:
    """True if processes share the tower's weights. A pass then gathers them, so either every
    process makes it or none."""
    return any(hasattr(weight, "ds_id") for weight in tower.parameters()) or is_scattered(tower)


def any_process(condition: bool, device: torch.device) -> bool:
    """True if the condition holds in any process; every process must call this."""
    flag = torch.tensor([int(condition)], device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def _bytes(feature: Feature) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (feature[0], *feature[1]))


def fingerprint(video: torch.Tensor, grid: torch.Tensor) -> Fingerprint:
    """Fingerprint of a video, [patches, values of a patch]: two sums of its values, weighted by
    their place, and its shape.

    Two different videos share it only by a coincidence of the order of rounding errors: those of
    single precision within a patch, and of double precision over patches.
    """
    # Autocast would round the values.
    with torch.autocast(video.device.type, enabled=False):
        sums = (video.float() @ _roots(video.shape[1], video.device).float()).double()
    time, height, width = (int(n) for n in grid)
    return float(sums.sum()), float(sums @ _roots(len(sums), video.device)), time, height, width


def _roots(count: int, device: torch.device) -> torch.Tensor:
    """Square roots of 1, 2, ..., count."""
    return torch.arange(1, count + 1, device=device, dtype=torch.double).sqrt()


def equal_to(videos: Sequence[torch.Tensor], grids: Sequence[Sequence[int]]) -> list[int]:
    """For each video, the index of the first one that equals it, in every bit and in shape (black
    videos may differ in shape only)."""
    # Some equal values only preselect the candidates for a full comparison.
    some = [tuple(video.flatten()[:: max(1, video.numel() // _COMPARED)].tolist()) for video in videos]
    keys = [(values, *grid) for values, grid in zip(some, grids, strict=True)]
    return first_equals(keys, lambda one, other: torch.equal(videos[one], videos[other]))


def first_equals(keys: Sequence[Hashable], equal: Callable[[int, int], bool]) -> list[int]:
    """For each place, the first one that equals it.

    Args:
        keys: of each place; equal places have equal keys.
        equal: compares two places whose keys are equal.
    """
    firsts: dict[Hashable, list[int]] = {}
    found: list[int] = []
    for place, key in enumerate(keys):
        candidates = firsts.setdefault(key, [])
        first = next((other for other in candidates if equal(other, place)), place)
        if first == place:
            candidates.append(place)
        found.append(first)
    return found
