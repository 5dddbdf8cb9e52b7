"""Imported once by the fork server: every training child starts with its libraries there."""

import engine.train.child  # noqa: F401 - the import is the point
