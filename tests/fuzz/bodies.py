"""Bodies that schemathesis cannot make up by itself; its configuration names this file."""

from pathlib import Path

import schemathesis
from hypothesis import strategies as st

CORPUS = Path(__file__).resolve().parents[1] / "corpus" / "adapters"
ARCHIVES = [path.read_bytes() for path in sorted(CORPUS.glob("*.tar"))[::8]]

schemathesis.openapi.media_type("application/x-tar", st.sampled_from(ARCHIVES) | st.binary())
