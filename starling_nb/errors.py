"""The one family of errors that a user is meant to read: each message says what to do."""

from __future__ import annotations


class StarlingError(Exception):
    """Something the user can put right; the front prints the message without a traceback."""


class ModelError(StarlingError):
    """A model that is not there or cannot be read."""
