"""Near-duplicates are looked up: the pairs are those that a comparison of all with all finds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.ingest.curation import duplicates
from stages.ingest.curation.duplicates import (
    BANDS,
    FEWEST,
    MAX_BITS,
    MAX_COLOUR,
    MAX_RATIO,
    PLACES,
    Signature,
    close_pairs,
    near_duplicates,
)
from tests.support.builders import clip


def plain(signatures: list[Signature]) -> list[tuple[int, int, float, int]]:
    """Compare all with all: numbers of both clips, bits, colour."""
    found = []
    for (n, one), (m, other) in combinations(enumerate(signatures), 2):
        short, long = sorted((one.length_s, other.length_s))
        at = [place for place in range(PLACES) if one.usable[place] and other.usable[place]]
        if long > short * MAX_RATIO or len(at) < FEWEST:
            continue
        bits = sum(int(one.hashes[p] ^ other.hashes[p]).bit_count() for p in at) / len(at)
        colour = max(int(abs(one.colours[p] - other.colours[p]).max()) for p in at)
        if bits <= MAX_BITS and colour <= MAX_COLOUR:
            found.append((n, m, round(bits, 2), colour))
    return found


def signatures(seed: int, count: int, flipped: int) -> list[Signature]:
    """Clips of three scenes; a picture differs from that of its scene by up to ``flipped`` bits."""
    rng = np.random.default_rng(seed)
    scenes = rng.integers(0, 2**63, (3, PLACES), np.uint64)
    colours = rng.integers(0, 256, (3, PLACES, 48)).astype(np.int16)
    made = []
    for _ in range(count):
        scene = rng.integers(3)
        flips = np.zeros(PLACES, np.uint64)
        for place in range(PLACES):
            for bit in rng.choice(63, rng.integers(flipped + 1), replace=False):
                flips[place] |= np.uint64(1 << int(bit))
        coloured = colours[scene] + rng.integers(0, 12, (PLACES, 48)) * rng.integers(0, 3)
        usable = rng.random(PLACES) < rng.choice([0.4, 0.9, 1])
        made.append(Signature(scenes[scene] ^ flips, coloured, usable, float(rng.choice([1, 1.05, 1.1, 1.101, 2]))))
    return made


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 24), st.integers(0, 9), st.booleans())
def test_the_pairs_are_those_of_all_with_all(seed: int, count: int, flipped: int, in_pieces: bool) -> None:
    made = signatures(seed, count, flipped)
    clips = [clip(clip_id=f"c{n:02d}") for n in range(count)]
    with pytest.MonkeyPatch.context() as patched:
        if in_pieces:
            patched.setattr(duplicates, "_ROWS_AT_ONCE", 5)
            patched.setattr(duplicates, "_PAIRS_AT_ONCE", 3)
        pairs = near_duplicates(clips, made)
    expected = [((f"c{n:02d}", f"c{m:02d}"), bits, colour) for n, m, bits, colour in plain(made)]
    assert [(pair.clips, pair.bits, pair.colour) for pair in pairs] == expected


def test_every_way_to_differ_by_the_most_bits_is_found() -> None:
    """Also where the bits lie in one band, or at both sides of its edge."""
    assert sum(band.differ + 1 for band in BANDS) > MAX_BITS
    assert [band.lowest for band in BANDS] == [0, *np.cumsum([band.bits for band in BANDS])[:-1]]
    assert sum(band.bits for band in BANDS) == 64
    rng = np.random.default_rng(0)
    masks = [sum(1 << int(bit) for bit in rng.choice(64, int(MAX_BITS), replace=False)) for _ in range(200)]
    masks += [63 << lowest for lowest in range(59)]
    base = int(rng.integers(0, 2**63))
    hashes = np.array([base, *(base ^ mask for mask in masks)], np.uint64)
    found = {int(m) for one, other in close_pairs(hashes, np.ones(len(hashes), np.bool_)) for m in other[one == 0]}
    assert found == set(range(len(hashes)))


def test_few_of_all_pairs_of_hashes_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    spread = duplicates._spread

    def counted(*given: np.ndarray) -> object:
        nonlocal compared
        for one, at in spread(*given):
            compared += len(one)
            yield one, at

    monkeypatch.setattr(duplicates, "_spread", counted)
    count = 4000
    hashes = np.random.default_rng(1).integers(0, 2**64, count, np.uint64)
    assert not any(bool((one != other).any()) for one, other in close_pairs(hashes, np.ones(count, np.bool_)))
    # Each with itself three times, and a few of eight million pairs, in both directions.
    assert 3 * count < compared < 3 * count + count**2 // 500
