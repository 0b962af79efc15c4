"""Packed rows: several sequences in one row without padding, and a prefix that sequences share only
once.

A row has groups, one behind the other. A group is a prefix and its suffixes: every suffix continues
the prefix as if the others were not there. A group without a suffix is an ordinary sequence. So the
replies to a prompt are suffixes of it, and the samples of a supervised step are groups.

Everything in a layer but its attention treats tokens one by one. The attention is two calls: every
prefix attends to itself, every suffix to its prefix and to itself. No mask over the whole row is
made. Positions begin anew in every group, and in every suffix behind its prefix. Logits are
computed where tokens of a layout are scored, and nowhere else.

The text of a model takes packed rows once :func:`take_packed_rows` has prepared it; other inputs
pass as before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stages.errors import MachineError
from stages.lib.models.processor import EncodedPrompt, join_videos, modality_of
from stages.lib.models.sequence import Share

#: Name of the attention of models that take packed rows. (With "flash" in it, transformers would
#: hand over no masks.)
ATTENTION = "vidbridge_packed"
#: Argument of such a model: the layout of a packed row.
LAYOUT = "packed"
#: Environment variable: 0 trains on padded rows, one a sequence.
SWITCH = "VIDBRIDGE_SHARED_PREFIX"


class SwitchError(MachineError, ValueError):
    """The environment asks for something else than packed rows or padded ones."""


def packs(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether training packs its rows: yes, unless VIDBRIDGE_SHARED_PREFIX is 0. The numbers are
    the same within rounding.

    Raises:
        SwitchError: it is neither 0 nor 1.
    """
    value = environ.get(SWITCH, "").strip()
    if value not in ("", "0", "1"):
        raise SwitchError(SWITCH, f"{value!r} is neither 0 nor 1", "unset it, or set 0 to train on padded rows")
    return value != "0"


class Group(NamedTuple):
    """Lengths of a group, in tokens.

    Attributes:
        prefix: of the prefix, at least 1.
        suffixes: of each suffix, at least 1 each.
        scored: of the end of the prefix, whose tokens are scored; those of the suffixes all are.
    """

    prefix: int
    suffixes: tuple[int, ...] = ()
    scored: int = 0


class _Places(NamedTuple):
    """Indices into a row, on a device.

    Attributes:
        prefix_NP: tokens of each prefix; behind its end, any.
        suffix_MR: the same for the suffixes of all groups; None if there are none.
        group_M: group of each suffix.
        mask_MRK: whether a token of a suffix attends to one of its prefix and itself, [suffixes or
            1, 1, longest suffix, longest prefix + longest suffix].
        back_L: of each token of the row, its place in the attention's two outputs, one behind the
            other.
        scored_S: tokens that are scored, in order; of a shared row, among this process's tokens.
    """

    prefix_NP: torch.Tensor
    suffix_MR: torch.Tensor | None
    group_M: torch.Tensor
    mask_MRK: torch.Tensor
    back_L: torch.Tensor
    scored_S: torch.Tensor


@dataclass(frozen=True)
class Layout:
    """Where the groups of a packed row stand; ``share``: of the processes that share it."""

    groups: tuple[Group, ...]
    share: Share | None = field(default=None, compare=False, repr=False)
    _places: dict[torch.device, _Places] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def tokens(self) -> int:
        """Number of tokens of the row."""
        return sum(group.prefix + sum(group.suffixes) for group in self.groups)

    @property
    def own_tokens(self) -> int:
        """Number of this process's tokens of the row."""
        return self.tokens if self.share is None else self.share.lengths(self.tokens)[self.share.rank]

    def places(self, device: torch.device) -> _Places:
        """Indices on a device, made once."""
        if device not in self._places:
            self._places[device] = self._indices(device)
        return self._places[device]

    def _indices(self, device: torch.device) -> _Places:
        prefixes = [group.prefix for group in self.groups]
        suffixes = [length for group in self.groups for length in group.suffixes]
        longest, longest_suffix = max(prefixes), max(suffixes, default=0)
        prefix_starts: list[int] = []
        suffix_starts: list[int] = []
        scored: list[int] = []
        back: list[int] = []
        behind = len(prefixes) * longest
        at = 0
        for number, group in enumerate(self.groups):
            prefix_starts.append(at)
            back += range(number * longest, number * longest + group.prefix)
            at += group.prefix
            scored += range(at - group.scored, at)
            for length in group.suffixes:
                first = behind + len(suffix_starts) * longest_suffix
                suffix_starts.append(at)
                back += range(first, first + length)
                scored += range(at, at + length)
                at += length

        def rows(starts: Sequence[int], width: int) -> torch.Tensor:
            # Behind the end of a sequence any token will do: its output is dropped, and no other
            # attends to it.
            return (torch.tensor(starts)[:, None] + torch.arange(width)).clamp(max=at - 1)

        group_M = torch.tensor([n for n, group in enumerate(self.groups) for _ in group.suffixes], dtype=torch.long)
        known_NP = torch.arange(longest) < torch.tensor(prefixes)[:, None]
        if known_NP.all():  # one mask serves all suffixes
            known_NP = known_NP[:1]
        known_MP = known_NP if len(known_NP) == 1 else known_NP[group_M]
        causal_RR = torch.ones(longest_suffix, longest_suffix, dtype=torch.bool).tril()
        mask_MRK = torch.cat(
            [known_MP[:, None].expand(-1, longest_suffix, -1), causal_RR.expand(len(known_MP), -1, -1)], dim=2
        )
        scored_S = torch.tensor(scored, dtype=torch.long)
        if self.share is not None:
            scored_S = scored_S[self.share.holds(scored_S, at)] - self.share.part(at).start
            # One without any takes part in the passes all the same.
            scored_S = scored_S if len(scored_S) else torch.zeros(1, dtype=torch.long)
        return _Places(
            prefix_NP=rows(prefix_starts, longest).to(device),
            suffix_MR=rows(suffix_starts, longest_suffix).to(device) if suffixes else None,
            group_M=group_M.to(device),
            mask_MRK=mask_MRK[:, None].to(device),
            back_L=torch.tensor(back).to(device),
            scored_S=scored_S.to(device),
        )


class Continuation(NamedTuple):
    """A prompt and the token ids of each reply to it; no reply is empty."""

    prompt: EncodedPrompt
    replies: Sequence[Sequence[int]]


def packed_inputs(
    backbone: Any, processor: Any, continuations: Sequence[Continuation], device: torch.device | str
) -> dict[str, Any]:
    """Build the inputs of one packed row in which each prompt stands once, and the labels of the
    replies' tokens.

    The last token of a prompt is repeated at the start of each reply, and a reply's own last token
    is left out: so the token at each place of a suffix is followed by the reply's token at that
    place. (Of a prompt with a single reply nothing can be shared, so both are one sequence.)

    Args:
        backbone: model below the head, which knows positions.

    Returns:
        Arguments of the model: ``input_ids`` [1, tokens], ``position_ids`` [3, 1, tokens], the
        layout and the videos; and ``shift_labels`` [1, scored], the token that follows each scored
        one, reply after reply.
    """
    groups: list[Group] = []
    ids: list[int] = []
    labels: list[int] = []
    positions: list[torch.Tensor] = []
    for prompt, replies in continuations:
        of_prompt_3P = prompt_positions(backbone, processor, prompt)
        ids += prompt.ids[:-1]
        positions.append(of_prompt_3P[:, :-1])
        for reply in replies:
            ids += [prompt.ids[-1], *reply[:-1]]
            labels += reply
            positions.append(of_prompt_3P[:, -1:] + torch.arange(len(reply)))
        lengths = tuple(len(reply) for reply in replies)
        before = len(prompt.ids) - 1
        groups.append(Group(before + lengths[0], (), lengths[0]) if len(lengths) == 1 else Group(before, lengths))
    videos = join_videos([prompt.videos for prompt, _ in continuations], device)
    ids_1L = torch.tensor([ids], device=device)
    return {
        "input_ids": ids_1L,
        "position_ids": torch.cat(positions, dim=1)[:, None].to(device),
        "mm_token_type_ids": modality_of(ids_1L, processor),
        LAYOUT: Layout(tuple(groups)),
        "shift_labels": torch.tensor([labels], device=device),
        "pixel_values_videos": videos["pixel_values_videos"],
        "video_grid_thw": videos["video_grid_thw"],
    }


#: Positions of the latest shapes of prompts, by model: computing them takes five to twelve times as
#: long as finding them, and the prompts of a training have few shapes.
_POSITIONS: WeakKeyDictionary[Any, dict[tuple[Any, ...], torch.Tensor]] = WeakKeyDictionary()
#: Number of shapes that are remembered; one of 2,000 tokens takes 48 kB.
_SHAPES = 256


def prompt_positions(backbone: Any, processor: Any, prompt: EncodedPrompt) -> torch.Tensor:
    """Positions in time, height and width of a prompt's tokens, int64 [3, tokens]. The last token
    is text, and those behind it continue from its position.

    Prompts of one shape share them: they are not to be written to.
    """
    ids_1P = torch.tensor([prompt.ids])
    kinds_1P = modality_of(ids_1P, processor)
    grids = tuple(map(tuple, prompt.videos.grids.tolist()))
    shape = (bytes(kinds_1P[0].tolist()), grids, prompt.videos.seconds)
    known = _POSITIONS.setdefault(backbone, {})
    if shape not in known:
        videos = join_videos([prompt.videos], "cpu")
        del videos["pixel_values_videos"]
        positions_31P, _ = backbone.get_rope_index(
            input_ids=ids_1P, mm_token_type_ids=kinds_1P, attention_mask=torch.ones_like(ids_1P), **videos
        )
        known[shape] = positions_31P[:, 0]
        if len(known) > _SHAPES:
            del known[next(iter(known))]
    return known[shape]


def take_packed_rows(model: PreTrainedModel) -> None:
    """Make a model take packed rows; it may have been made to before."""
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    text = model.config.get_text_config()
    if text._attn_implementation != ATTENTION:
        text._attn_implementation = ATTENTION
        model.base_model.register_forward_hook(_only_scored, with_kwargs=True)


def _only_scored(_: Any, __: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """Drop the last hidden states that no logits are computed from."""
    layout: Layout | None = kwargs.get(LAYOUT)
    if layout is not None:
        hidden_1LD = output.last_hidden_state
        output.last_hidden_state = hidden_1LD.index_select(1, layout.places(hidden_1LD.device).scored_S)
    return output


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute the attention of a packed row, or that of transformers for any other input.

    Args:
        query: [1, heads, tokens, width]; of a shared row, this process's tokens.
        key, value: [1, heads of keys, tokens, width].
        packed: layout of the row; its masks come from there.

    Returns:
        [1, tokens, heads, width], and no weights.
    """
    if packed is None:
        out: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out
    share = packed.share
    if share is not None:
        query, key, value = (share.all_tokens(part, packed.tokens) for part in (query, key, value))
    places = packed.places(query.device)
    scale, dropout = kwargs.get("scaling"), kwargs.get("dropout", 0.0)

    def chosen(part_1HLD: torch.Tensor, places_BT: torch.Tensor) -> torch.Tensor:
        """[rows, heads, tokens, width]."""
        rows: torch.Tensor = part_1HLD[0].index_select(1, places_BT.flatten()).unflatten(1, places_BT.shape)
        return rows.transpose(0, 1)

    prefix_keys, prefix_values = (chosen(part, places.prefix_NP) for part in (key, value))
    prefix_out = torch.nn.functional.scaled_dot_product_attention(
        chosen(query, places.prefix_NP),
        prefix_keys,
        prefix_values,
        dropout_p=dropout,
        scale=scale,
        is_causal=True,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    # [rows, heads, tokens, width] -> [rows * tokens, heads, width]
    outs = [prefix_out.transpose(1, 2).flatten(0, 1)]
    if places.suffix_MR is not None:
        keys, values = (
            torch.cat([of_prefix.index_select(0, places.group_M), chosen(part, places.suffix_MR)], dim=2)
            for of_prefix, part in ((prefix_keys, key), (prefix_values, value))
        )
        suffix_out = _masked(chosen(query, places.suffix_MR), keys, values, places.mask_MRK, dropout, scale)
        outs.append(suffix_out.transpose(1, 2).flatten(0, 1))
    attended = torch.cat(outs).index_select(0, places.back_L)[None]
    return attended if share is None else share.all_heads(attended), None


def _masked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    dropout: float,
    scale: float | None,
) -> torch.Tensor:
    """Compute masked attention. The query heads of one key head are taken as more queries of it, so
    that no key is repeated."""
    shape, share = query.shape, query.shape[1] // key.shape[1]
    out: torch.Tensor = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(shape[0], shape[1] // share, share * shape[2], shape[3]),
        key,
        value,
        attn_mask=mask.repeat(1, 1, share, 1),
        dropout_p=dropout,
        scale=scale,
    )
    return out.reshape(shape)
