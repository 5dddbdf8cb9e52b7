"""What may be made trainable, and what is refused before any step."""

from pathlib import Path

import pytest

from engine.spec import LoraPeft
from engine.train.errors import TrainingFailed
from engine.train.model import add_peft, load_base
from tests.bases import make_base


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("module", ["embed_tokens", "lm_head", "nothing_here", "norm"])
def test_modules_that_could_not_be_trained_or_served_are_refused(
    tmp_path: Path, module: str
) -> None:
    base = load_base(make_base(tmp_path))
    with pytest.raises(TrainingFailed, match=r"`peft\.target_modules`") as refused:
        add_peft(base, LoraPeft(target_modules=(module,)))
    assert refused.value.code == "peft_invalid"


def test_a_refusal_names_the_modules_that_can_be_trained(tmp_path: Path) -> None:
    base = load_base(make_base(tmp_path))
    with pytest.raises(TrainingFailed, match='"all-linear" or to some of: down_proj, gate_proj'):
        add_peft(base, LoraPeft(target_modules=("c_attn",)))
