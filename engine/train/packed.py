"""Packed rows as tensors, and whether a model reads the examples of one row each by itself."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from engine.train.errors import TrainingFailed
from engine.train.examples import IGNORED

# How far a packed example may be from the same one alone, against how far it is when it is read on
# from the example before it. In bfloat16 other shapes alone move log-probs by a few hundredths.
NEAR = {torch.float32: 1e-3}
NEAR_ROUNDED = 0.1


class RowCollator:
    """A batch of rows that are padded: with `seq_lengths` packed ones, else one example each.

    Packed rows have `position_ids`, which begin at 0 with each example, and no attention mask:
    from that, transformers keeps an example's attention to itself. Padding stands at position 0.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id
        self._one_each = DataCollatorForLanguageModeling(pad_token_id)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        if "seq_lengths" not in rows[0]:
            batch: dict[str, Tensor] = self._one_each(rows)
            return batch
        positions = [_positions(row["seq_lengths"]) for row in rows]
        labels = [torch.tensor(row["labels"]) for row in rows]
        for places, row in zip(positions, labels, strict=True):
            row[places == 0] = IGNORED  # else it would be predicted from the example before it
        return {
            "input_ids": _padded([torch.tensor(row["input_ids"]) for row in rows], self._pad),
            "labels": _padded(labels, IGNORED),
            "position_ids": _padded(positions, 0),
        }


def tokens_of(position_ids: Tensor) -> int:
    """Tokens of packed rows without their padding: every example has one at position 1."""
    return int((position_ids > 0).sum() + (position_ids == 1).sum())


def require_separate(model: Any) -> None:
    """Raises TrainingFailed for a model to which packed examples are one text.

    An architecture may leave position ids aside, or carry a state from token to token.
    """
    first, second = _some_ids(model, 12, step=7), _some_ids(model, 9, step=11)
    both = torch.cat([first, second])
    alone = _logprobs(model, second, torch.arange(len(second)))
    packed = _logprobs(model, both, _positions([len(first), len(second)]))[len(first) :]
    read_on = _logprobs(model, both, torch.arange(len(both)))[len(first) :]
    off, most = (packed - alone).abs().mean(), (read_on - alone).abs().mean()
    if not off <= NEAR.get(model.dtype, NEAR_ROUNDED) * most:
        raise TrainingFailed(
            "packing_unsupported",
            f"{type(_plain(model)).__name__} does not keep the examples of a packed row apart; set "
            "`method.packing` to false.",
        )


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _logprobs(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """[tokens, vocabulary], natural log, without dropout."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(
                input_ids=ids[None].to(model.device),
                position_ids=positions[None].to(model.device),
                use_cache=False,
            )
    except (TypeError, ValueError):  # it takes no position ids
        return torch.full((len(ids), 1), torch.nan)
    finally:
        model.train(was_training)
    found: Tensor = output.logits[0].float().log_softmax(-1).cpu()
    return found


def _some_ids(model: Any, count: int, *, step: int) -> Tensor:
    vocabulary = model.get_input_embeddings().num_embeddings
    return torch.arange(3, 3 + count * step, step) % vocabulary


def _positions(lengths: Sequence[int]) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths])


def _padded(rows: list[Tensor], value: int) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)
