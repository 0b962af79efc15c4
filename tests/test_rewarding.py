"""What a row pays for and watches, made of real scores of two judges."""

from __future__ import annotations
