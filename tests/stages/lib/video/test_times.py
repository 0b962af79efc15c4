"""Times of frames from times of packets: a wrong one affects one frame only."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stages.lib.video.times import Packet, frame_times, index_packets

EVEN = [number * 10 for number in range(40)]
#: I P B B in order of storage.
REORDERED = [0, *(time for group in range(1, 37, 3) for time in ((group + 2) * 10, group * 10, (group + 1) * 10))]


def test_true_times_are_sorted() -> None:
    assert frame_times(EVEN, (0,)) == (tuple(EVEN), tuple(EVEN), 0)
    found = frame_times(REORDERED, (3, 5, 17))
    assert found is not None
    assert found[0] == tuple(sorted(REORDERED))
    assert found[2] == 0


@given(st.integers(1, 38), st.one_of(st.none(), st.integers(-100, 1000)))
def test_one_wrong_time_costs_one_frame_its_slot(bad: int, time: int | None) -> None:
    found = frame_times([*EVEN[:bad], time, *EVEN[bad + 1 :]], (0,))
    assert found is not None
    times = found[0]
    wrong = [place for place, (a, b) in enumerate(zip(times, EVEN, strict=True)) if a != b]
    # Out of order with a single neighbour, either of the two may be the wrong one.
    assert set(wrong) <= {bad - 1, bad, bad + 1}
    assert len(wrong) <= 1 or time is not None
    assert list(times) == sorted(times)


def test_a_doubled_time_stays_as_a_player_shows_it() -> None:
    times, even, wrong = frame_times([0, 10, 10, 50, 60, 100, 140, 150], (0,)) or ((), (), -1)
    assert times == (0, 10, 10, 50, 60, 100, 140, 150)
    assert even == (0, 10, 30, 50, 60, 100, 140, 150)
    assert wrong == 0


def test_many_wrong_times_are_believed_no_more() -> None:
    assert frame_times([time // 20 * 20 for time in EVEN], (0,)) is None
    assert frame_times([*EVEN, *EVEN], (0, 3, 5, 17)) is None
    assert frame_times([None] * 5, (0,)) is None


def test_what_a_container_or_a_codec_contradicts_is_not_the_order() -> None:
    packets = [Packet(time, time, time == 0, False) for time in EVEN]
    assert index_packets(packets, "mov,mp4", "h264", False, False).ordered
    assert not index_packets(packets, "mov,mp4", "h264", True, True).ordered
    assert not index_packets(packets, "matroska,webm", "hevc", True, False).ordered
    assert not index_packets(packets, "avi", "h264", True, False).ordered
    assert index_packets(packets, "avi", "mjpeg", False, False).ordered
    one_bad = [*packets[:9], Packet(50, 90, False, False), *packets[10:]]
    assert not index_packets(one_bad, "mov,mp4", "vp9", None, False).ordered
