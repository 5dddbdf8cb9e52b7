"""Signs that a run against a reward goes wrong without failing."""

from engine.plan import Warned
from engine.spec import Online
from engine.train.link import Link

CONSTANT_STEPS = 3


class RewardWatch:
    """Warns once of each sign; `stops` is true where the client asked to stop at one."""

    def __init__(self, method: Online, link: Link) -> None:
        self._method, self._link = method, link
        self._constant = 0
        self._told: set[str] = set()

    def stops(self, step: int, metrics: dict[str, float]) -> bool:
        self._constant = self._constant + 1 if metrics["reward_std"] == 0 else 0
        if self._constant == CONSTANT_STEPS:
            self._tell(
                "constant",
                f"Every answer of the last {CONSTANT_STEPS} steps got the same reward, so there is "
                "nothing to learn from; try the reward on a few answers.",
            )
        bound, kl = self._method.max_kl, metrics.get("kl")
        if bound is None or kl is None or kl <= bound:
            return False
        stop = self._method.on_max_kl == "stop"
        end = "training ends here" if stop else "the reward may be being gamed"
        self._tell("kl", f"KL {kl:.2f} at step {step} is above max_kl {bound:g}: {end}.")
        return stop

    def _tell(self, sign: str, message: str) -> None:
        if sign not in self._told:
            self._told.add(sign)
            self._link.send(Warned(message=message))
