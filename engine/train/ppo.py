"""Proximal policy optimization against a reward model, with a KL penalty to the starting policy.

Ouyang et al. 2022, arXiv:2203.02155, section 3.5 and appendix C.4. Policy, reference, reward and
value function share one copy of the base: see actor_critic.py; the equations are beside it.
"""

import math
import time
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from engine.plan import Evaluated, Finished, Started, Stepped, TrainPlan
from engine.render import Renderer
from engine.spec import PpoMethod
from engine.steps import answers_a_step, total_steps
from engine.train.actor_critic import ActorCritic, Answers
from engine.train.errors import StopRequested, TrainingFailed
from engine.train.examples import Asked, prompts
from engine.train.link import Link
from engine.train.ppo_equations import (
    adapted,
    gae,
    masked_mean,
    penalized_rewards,
    policy_loss,
    value_loss,
    whiten,
)
from engine.train.ppo_state import PpoState
from engine.train.prompting import Prompts, probe_examples, sampling, split_prompts
from engine.train.reward_watch import RewardWatch
from engine.train.scorer import Scorer, grading
from engine.train.start import POLICY, begin, finish, read
from engine.train.trainer import Outcome


def train(plan: TrainPlan, link: Link) -> Finished:
    """Learn from the policy's own answers, and leave it in `work_dir/adapter`.

    Raises StopRequested and TrainingFailed.
    """
    method = plan.method
    assert isinstance(method, PpoMethod)
    renderer, data = read(plan, link, prompts)
    start = begin(plan, probe_examples(data.examples))
    split = split_prompts(data.examples, plan, data.validation)
    actor = ActorCritic(
        start.model, reward_from=plan.reward_from, copy_reference=plan.init_from is not None
    )
    graded = grading(plan, lambda: actor.switch, renderer, link) if method.grader else None
    run = PpoRun(plan, method, renderer, actor, graded, split, link)
    outcome = run.run()
    actor.switch.use(POLICY)
    return finish(plan, link, start, outcome, renderer)


@dataclass(frozen=True)
class Seen:
    """What the four models say of answers: [answers, tokens] each, but `scores`, [answers]."""

    answers: Answers
    logprobs: Tensor
    reference: Tensor
    values: Tensor
    scores: Tensor

    @property
    def kl(self) -> Tensor:
        """The sum over each answer's tokens of log pi - log pi_start, [answers]."""
        return ((self.logprobs - self.reference) * self.answers.mask).sum(1)


@dataclass(frozen=True)
class Experience:
    """What is learned from: answers, and [answers, tokens] of log-probs, values, targets."""

    answers: Answers
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def __getitem__(self, rows: Tensor) -> "Experience":
        return Experience(
            self.answers[rows],
            self.logprobs[rows],
            self.values[rows],
            self.advantages[rows],
            self.returns[rows],
        )

    def parts(self, size: int) -> list["Experience"]:
        rows = torch.arange(len(self.answers), device=self.returns.device)
        return [self[part] for part in rows.split(size)]

    def explained_variance(self) -> float:
        """1 - var(returns - values) / var(returns); 0 where all returns are the same."""
        kept = self.answers.mask.bool()
        spread = self.returns[kept].var(correction=0)
        missed = (self.returns - self.values)[kept].var(correction=0)
        return 1 - (missed / spread).item() if spread > 0 else 0.0


class PpoRun:
    """The loop: sample, score, learn; a step is one batch of answers."""

    def __init__(
        self,
        plan: TrainPlan,
        method: PpoMethod,
        renderer: Renderer,
        actor: ActorCritic,
        graded: Scorer | None,
        split: Prompts,
        link: Link,
    ) -> None:
        self.plan, self.method, self.actor, self.link = plan, method, actor, link
        self.pad = renderer.contract.pad_token_id
        self.sampling = sampling(method, renderer.contract)
        self.batch = answers_a_step(method)
        self.split, self.graded = split, graded
        self.total = total_steps(method, len(split.train))
        self.state = PpoState(actor, method, plan, self.total)
        self.watch = RewardWatch(method, link)

    def run(self) -> Outcome:
        """Train from where the state is to the end."""
        state, link = self.state, self.link
        if self.plan.resume_from is not None:
            state.load(self.plan.resume_from)
        link.send(self._started())
        begun = time.monotonic()
        held_out = {} if state.step else self._evaluate()
        while state.step < self.total:
            metrics = self._step(self.split.batch(state.step, self.batch))
            state.count(metrics["loss"])
            epoch = state.step * self.batch / len(self.split.train)
            link.send(
                Stepped(step=state.step, total_steps=self.total, epoch=epoch, metrics=metrics)
            )
            if self.watch.stops(state.step, metrics):
                break
            self._heed(metrics)
        held_out = self._evaluate() or held_out
        took = time.monotonic() - begun
        metrics = {"train_loss": state.mean_loss, "steps": float(state.step), **held_out}
        return Outcome(state.step, took, metrics)

    def _heed(self, metrics: dict[str, float]) -> None:
        """Do what the runner asked for, and keep a checkpoint when it is time."""
        state, asked = self.state, self.link.directive
        if asked == "cancel":
            raise StopRequested("cancel")
        if state.step >= self.total:
            return
        if asked == "pause" or state.step % self.plan.checkpoint_every == 0:
            self.link.send(state.save(metrics))
        if asked == "pause":
            raise StopRequested("pause")

    def _step(self, batch: list[Asked]) -> dict[str, float]:
        """Sample an answer to each prompt, score them, and learn from them."""
        method, state = self.method, self.state
        seen = self._look(batch, answers := self._answer(batch))
        experience = self._experience(seen)
        kl = seen.kl.mean().item()
        metrics = {
            **self._learn(experience),
            "reward": seen.scores.mean().item(),
            "reward_std": seen.scores.std(correction=0).item(),
            "kl": kl,
            "kl_coef": state.kl_coef,
            "completion_length": answers.mask.sum(1).float().mean().item(),
            "ended": answers.ended.float().mean().item(),
            "explained_variance": experience.explained_variance(),
        }
        if method.kl_control == "adaptive":
            state.kl_coef = adapted(
                state.kl_coef,
                kl,
                target=method.kl_target,
                horizon=method.kl_horizon,
                answers=len(answers),
            )
        return metrics

    def _answer(self, batch: list[Asked]) -> Answers:
        prompts = [asked.input_ids for asked in batch]
        answers: Answers = self.actor.answer(prompts, self.sampling, self.pad)
        return answers

    @torch.no_grad()
    def _look(self, batch: list[Asked], answers: Answers) -> Seen:
        """Log-probs, values and scores, of `per_device_batch_size` answers at a time."""
        actor, temperature = self.actor, self.method.temperature
        columns: list[tuple[Tensor, Tensor, Tensor]] = []
        scores: list[Tensor] = [] if self.graded is None else [self._graded(batch, answers)]
        for part in answers.parts(self.method.per_device_batch_size):
            actor.switch.use(POLICY)
            logprobs = actor.logprobs(part, temperature)[0]
            reference = actor.reference_logprobs(part, temperature)
            scores += [actor.rewards(part, self.pad)] if self.graded is None else []
            columns.append((logprobs, reference, actor.values(part)))
        actor.switch.use(POLICY)
        logprobs, reference, values = (torch.cat(each) for each in zip(*columns, strict=True))
        missing = self.method.missing_eos_penalty * (~answers.ended)
        return Seen(answers, logprobs, reference, values, torch.cat(scores) - missing)

    def _graded(self, batch: list[Asked], answers: Answers) -> Tensor:
        assert self.graded is not None
        return torch.tensor(self.graded(batch, answers.lists()), device=answers.mask.device)

    def _experience(self, seen: Seen) -> Experience:
        method, mask = self.method, seen.answers.mask
        rewards = penalized_rewards(
            seen.scores, seen.logprobs, seen.reference, mask, self.state.kl_coef
        )
        if method.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = gae(rewards, seen.values, mask, gamma=method.gamma, lam=method.lam)
        return Experience(
            seen.answers, seen.logprobs, seen.values, whiten(advantages, mask), returns
        )

    def _learn(self, experience: Experience) -> dict[str, float]:
        """`num_ppo_epochs` passes over the answers; the means of what the updates report."""
        answers = len(experience.answers)
        found: list[dict[str, float]] = []
        for _ in range(self.method.num_ppo_epochs):
            order = torch.randperm(answers).to(experience.returns.device)
            for rows in order.split(math.ceil(answers / self.method.num_mini_batches)):
                found.append(self._update(experience[rows]))
        return {name: fmean(figures[name] for figures in found) for name in found[0]}

    def _update(self, experience: Experience) -> dict[str, float]:
        """One step of the optimizer. Of what is computed in parts, each weighs as its tokens."""
        totals: dict[str, float] = {}
        tokens = experience.answers.mask.sum()
        for part in experience.parts(self.method.per_device_batch_size):
            share = (part.answers.mask.sum() / tokens).item()
            for name, figure in self._add_gradients(part, share).items():
                totals[name] = totals.get(name, 0.0) + share * figure
        totals |= self.state.update()
        if not math.isfinite(totals["loss"]) or not math.isfinite(totals["grad_norm"]):
            raise TrainingFailed(
                "diverged",
                f"loss is {totals['loss']} after step {self.state.step}; lower "
                "`method.learning_rate`, or raise `method.kl_coef`.",
            )
        return totals

    def _add_gradients(self, part: Experience, share: float) -> dict[str, float]:
        """The policy's gradient is taken before the value adapter becomes the active one."""
        method, mask = self.method, part.answers.mask
        self.actor.switch.use(POLICY)
        logprobs, entropy = self.actor.logprobs(part.answers, method.temperature)
        policy, clipped = policy_loss(
            logprobs, part.logprobs, part.advantages, mask, method.cliprange
        )
        (share * policy).backward()
        values = self.actor.values(part.answers)
        value, value_clipped = value_loss(
            values, part.values, part.returns, mask, method.cliprange_value
        )
        (share * method.vf_coef * value).backward()
        return {
            "loss": (policy + method.vf_coef * value).item(),
            "policy_loss": policy.item(),
            "value_loss": value.item(),
            "clip_fraction": clipped.item(),
            "value_clip_fraction": value_clipped.item(),
            "entropy": masked_mean(entropy.detach(), mask).item(),
            "approx_kl": 0.5 * masked_mean((logprobs.detach() - part.logprobs) ** 2, mask).item(),
        }

    def _evaluate(self) -> dict[str, float]:
        """The mean reward and KL of answers to the held-out prompts, always from the same seed."""
        if not self.split.held_out:
            return {}
        scores, kls = [], []
        with torch.random.fork_rng():
            torch.manual_seed(self.plan.seed)
            for batch in self.split.held_out_batches(self.method.per_device_batch_size):
                seen = self._look(batch, self._answer(batch))
                scores += seen.scores.tolist()
                kls += seen.kl.tolist()
        metrics = {"eval_reward": fmean(scores), "eval_kl": fmean(kls)}
        self.link.send(Evaluated(step=self.state.step, metrics=metrics))
        return metrics

    def _started(self) -> Started:
        return Started(
            total_steps=self.total,
            rows=len(self.split.train),
            trained_tokens=0,
            trainable_parameters=sum(p.numel() for _, p in self.actor.trained()),
            resumed_step=self.state.step,
        )
