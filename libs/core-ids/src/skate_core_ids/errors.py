"""The root of every error that Skate raises on purpose.

It stands at the bottom of the ladder so that each library can derive from it without depending on
another. What a user catches is listed in ``skate.exceptions``.
"""

from __future__ import annotations


class SkateError(Exception):
    """Base of all public errors. Subclasses hold fields, build their own message, and pickle."""
