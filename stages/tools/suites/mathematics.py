"""math-verify, as the released multiple-choice reward of VidBridge-R1 asks it first."""

from __future__ import annotations


def same_mathematics(answer: str, reference: str) -> bool:
    """Whether math-verify takes the two for the same expression; False where it finds none in one of them ("B" is none).

    Call it on a main thread: its time limits, without which a tower of powers would never end, are alarms.
    """
    from math_verify import parse, verify  # a second of import that training need not pay

    found = parse(reference), parse(answer)
    return all(found) and bool(verify(*found))
