"""Imported once by the fork server: every training child starts with its libraries there.

Except bitsandbytes, which peft would import wherever it is installed. It asks the GPU what it is as
it is imported, and a process that has done so cannot fork children that use the GPU.
"""

import sys

sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # an import of it fails

from transformers.utils import import_utils  # noqa: E402  # not before the line above

import engine.train.child  # noqa: E402, F401 - the import is the point

del sys.modules["bitsandbytes"]  # a child that quantizes imports it
import_utils.is_bitsandbytes_available.cache_clear()  # it was asked above, and remembers a no
