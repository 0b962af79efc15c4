"""Texts that properties are tried on: any characters, and words of the generated world."""

from __future__ import annotations

from hypothesis import strategies as st

VOCABULARY = """
the red bar blue circle rises grows falls shrinks moves changes then first finally might may A B ( ) .
<think> </think> <answer>
"""
WORDS = st.sampled_from(VOCABULARY.split())
TEXTS = st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=14).map(" ".join))
CAPTIONS = st.lists(st.sampled_from([*VOCABULARY.split()[:-3], "followed by", "."]), min_size=1, max_size=14).map(
    " ".join
)
