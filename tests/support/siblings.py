"""Published files that may lie beside the checkout; nothing of them is committed, and what needs
them skips where they are missing."""

import pytest

from tests.support.checkout import ROOT

#: The only place that names the sibling folder.
SHARED = ROOT.parent / "shared"
ANNOTATIONS = SHARED / "annotations"
REAL_CLIPS = SHARED / "clips" / "real"

#: Small failing inputs of this project's own, committed; their README says what is right.
CASES = ROOT / "tests/data/cases"

needs_annotations = pytest.mark.skipif(
    not ANNOTATIONS.is_dir(), reason=f"published annotation files are not at {ANNOTATIONS}"
)
needs_real_clips = pytest.mark.skipif(
    not REAL_CLIPS.is_dir(), reason=f"clips of public test suites are not at {REAL_CLIPS}"
)
