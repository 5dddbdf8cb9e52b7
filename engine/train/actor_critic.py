"""Policy, reference, value and reward on one copy of the base, as LoRA adapters and two heads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from engine.train.reward_model import add_reward_adapter
from engine.train.start import POLICY
from engine.train.switch import AdapterSwitch

REFERENCE, VALUE, REWARD = "reference", "value", "reward"


@dataclass(frozen=True)
class Answers:
    """Prompts, padded on the left, with their answers, padded on the right.

    `token_ids` and `attention_mask` are [answers, prompt + tokens]; `mask` is [answers, tokens],
    1 up to and with the first stop token; `ended` is [answers], true where there is one.
    """

    token_ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    ended: Tensor

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, rows: Tensor) -> "Answers":
        return Answers(
            self.token_ids[rows], self.attention_mask[rows], self.mask[rows], self.ended[rows]
        )

    def parts(self, size: int) -> list["Answers"]:
        """The same answers, at most `size` at a time."""
        rows = torch.arange(len(self), device=self.mask.device)
        return [self[part] for part in rows.split(size)]

    @property
    def tokens(self) -> Tensor:
        """The answers alone, [answers, tokens]."""
        return self.token_ids[:, -self.mask.shape[1] :]

    def lists(self) -> list[list[int]]:
        """Each answer's own token ids, up to and with its stop token."""
        lengths = self.mask.sum(1).tolist()
        return [ids[:n] for ids, n in zip(self.tokens.tolist(), lengths, strict=True)]

    @property
    def positions(self) -> Tensor:
        """Of each token in its own sequence, from 0."""
        return (self.attention_mask.cumsum(1) - 1).clamp(min=0)


class ActorCritic:
    """A PEFT model whose adapter POLICY is trained, and what stands beside it.

    The reference is the base, or a frozen copy of the adapter that training starts from. The value
    function starts as the reward model (Ouyang et al. 2022, appendix C.4); where a grader gives the
    reward, as a new adapter of the policy's kind whose head says 0.
    """

    def __init__(self, model: Any, *, reward_from: Path | None, copy_reference: bool) -> None:
        self.switch = AdapterSwitch(model)
        if copy_reference:
            self.switch.copy(POLICY, REFERENCE, trained=False)
        self._reference = REFERENCE if copy_reference else None
        self._causal = model.get_base_model()
        if reward_from is None:
            head = torch.zeros(1, self._causal.get_input_embeddings().weight.shape[1])
            self.switch.add(VALUE, model.peft_config[POLICY], trained=True)
        else:
            head = add_reward_adapter(self.switch, reward_from, REWARD)
            self.switch.copy(REWARD, VALUE, trained=True)
        self._body = getattr(self._causal, self._causal.base_model_prefix)
        self._reward_head = nn.Parameter(head.to(model.device), requires_grad=False)
        self.value_head = nn.Parameter(head.to(model.device).clone())
        self.switch.use(POLICY)

    @property
    def model(self) -> Any:
        return self.switch.model

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """What the optimizer moves: the policy, the value adapter, the value head; in order."""
        found = [*self.switch.parameters_of(POLICY), *self.switch.parameters_of(VALUE)]
        return [*found, ("value_head", self.value_head)]

    @torch.no_grad()
    def answer(
        self, prompts: list[list[int]], config: GenerationConfig, pad_token_id: int
    ) -> Answers:
        """Sample an answer to each prompt from the policy."""
        longest = max(map(len, prompts))
        rows = [[pad_token_id] * (longest - len(ids)) + ids for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        ids = torch.tensor(rows, device=self.model.device)
        attention = torch.tensor(mask, device=self.model.device)
        self.switch.use(POLICY)
        self.model.eval()
        out = self.model.generate(input_ids=ids, attention_mask=attention, generation_config=config)
        answers = out[:, longest:]
        stops = torch.isin(answers, torch.tensor(config.eos_token_id, device=answers.device))
        before = stops.long().cumsum(1) - stops.long()
        valid = (before == 0).long()
        return Answers(out, torch.cat([attention, valid], 1), valid, stops.any(1))

    def logprobs(self, answers: Answers, temperature: float) -> tuple[Tensor, Tensor]:
        """log pi(token) of each answer's tokens under the active adapter, and the entropy there.

        Both [answers, tokens], natural log, of the distribution that was sampled from.
        """
        tokens = answers.mask.shape[1]
        output = self.model(
            input_ids=answers.token_ids,
            attention_mask=answers.attention_mask,
            position_ids=answers.positions,
            logits_to_keep=tokens + 1,
            use_cache=False,
        )
        logits = output.logits[:, -tokens - 1 : -1].float() / temperature
        logprobs = torch.log_softmax(logits, -1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, answers.tokens[..., None])[..., 0], entropy

    @torch.no_grad()
    def reference_logprobs(self, answers: Answers, temperature: float) -> Tensor:
        """log pi_start(token), as logprobs()."""
        with self.switch.using(self._reference):
            return self.logprobs(answers, temperature)[0]

    def values(self, answers: Answers) -> Tensor:
        """V before each of an answer's tokens is said, [answers, tokens].

        The value adapter stays active, so that a backward pass that computes anew finds it.
        """
        self.switch.use(VALUE)
        tokens = answers.mask.shape[1]
        hidden = self._hidden(answers)[:, -tokens - 1 : -1]
        return (hidden.float() @ self.value_head.T)[..., 0]

    @torch.no_grad()
    def rewards(self, answers: Answers, pad_token_id: int) -> Tensor:
        """The reward model's score of each answer, [answers]; it must have one.

        Read where its own training read it: at the last token that is not the pad token.
        """
        with self.switch.using(REWARD):
            hidden = self._hidden(answers)
        seen = answers.attention_mask * (answers.token_ids != pad_token_id)
        last = (seen * torch.arange(seen.shape[1], device=seen.device)).argmax(1)
        at_last = hidden[torch.arange(len(answers), device=hidden.device), last]
        return (at_last.float() @ self._reward_head.T)[:, 0]

    def _hidden(self, answers: Answers) -> Tensor:
        output = self._body(
            input_ids=answers.token_ids,
            attention_mask=answers.attention_mask,
            position_ids=answers.positions,
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden
