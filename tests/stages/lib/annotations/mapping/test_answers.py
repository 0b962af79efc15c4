"""Columns become the objects that tasks read."""

from __future__ import annotations

from tests.support.annotations.mapped import Mapped

MAPPING = """
video: file
answers:
  - {task: count, fields: {question: "how many {thing} ?", number: n, unit: unit?}}
  - {task: grounding, each: moments, when: {query: {present: true}}, fields: {question: query, spans: times}}
"""


def test_columns_become_objects_with_the_values_as_they_are(mapped: Mapped) -> None:
    moments = [{"query": "it falls", "times": [[0.5, 1]]}, {"query": "", "times": []}]
    rows = [{"file": "a.mp4", "thing": "bars", "n": 3, "moments": moments}]
    (found,), rejects = mapped(MAPPING, rows, "a.mp4")
    assert rejects == []
    assert found.answers == {
        "count": ({"question": "how many bars ?", "number": 3},),
        "grounding": ({"question": "it falls", "spans": [[0.5, 1]]},),
    }


def test_a_row_without_a_column_is_rejected_and_one_that_may_lack_it_is_not(mapped: Mapped) -> None:
    whole = {"file": "a.mp4", "thing": "bars", "n": 3, "unit": "m", "moments": []}
    lacking = {"file": "b.mp4", "thing": "bars", "moments": None}
    (found,), ((place, reason, detail),) = mapped(MAPPING, [whole, lacking], "a.mp4 b.mp4")
    assert found.answers == {"count": ({"question": "how many bars ?", "number": 3, "unit": "m"},)}
    assert (place, reason) == ("rows.json:1", "bad-annotation")
    assert detail.startswith("n: no such column; there are file, thing, moments")
