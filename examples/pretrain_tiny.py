"""Makes examples/models/luthier-tiny from nothing but a seed: tokenizer, weights, exam and card."""

import os
import sys

# Read once, as a process starts: threads that sleep, and memory that is kept, not given back.
# Together they make the training half as fast again.
FAST = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}

if __name__ == "__main__":
    environment = os.environ  # noqa: TID251  (a script of its own, outside the service)
    if not FAST.keys() <= environment.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**environment, **FAST})

    from tiny.training import main

    main()
