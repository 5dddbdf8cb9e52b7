"""What to learn and how: the Method and Peft unions. Torch-free, for api and trainer alike."""

import operator
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from engine.frozen import Asked
from engine.graders import Grader
from engine.rows import RowType

# As many as anyone has found useful, several times over, and little enough to keep many resident.
MAX_VIRTUAL_TOKENS = 1024
PREFIX_ENCODER_SIZE = 512  # hidden units

# Every loss of trl's DPOTrainer; what each is, stands in its documentation.
DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


# What may be left open with "auto"; engine/auto.py says what it becomes.
AutoField = Literal["learning_rate", "num_train_epochs", "per_device_batch_size", "warmup_ratio"]
AUTO_FIELDS: tuple[AutoField, ...] = get_args(AutoField)
AUTO = "auto"


def _takes_auto(schema: JsonDict) -> None:
    """Say in the documentation that these numbers may be left open."""
    properties = schema["properties"]
    assert isinstance(properties, dict)
    for name in AUTO_FIELDS:
        about = properties[name]
        assert isinstance(about, dict)
        either: JsonDict = {key: about.pop(key) for key in ("title", "default")}
        either["anyOf"] = [about, {"type": "string", "const": AUTO}]
        properties[name] = either


class Training(Asked):
    """What every method has.

    `validation_split` is the share of the rows that is held out, drawn by the job's seed, and
    looked at when training ends. `auto` names the fields that were given as "auto"; until the job
    is admitted they hold their defaults, and from then on the numbers that were found for them.
    `learning_rate_multiplier` is a factor on the learning rate that "auto" finds.
    """

    model_config = ConfigDict(json_schema_extra=_takes_auto)

    auto: tuple[AutoField, ...] = Field((), exclude_if=operator.not_)
    num_train_epochs: float = Field(3.0, gt=0, le=1000)
    max_steps: int | None = Field(None, ge=1, le=10_000_000)
    learning_rate: float = Field(2e-4, gt=0, le=1)
    learning_rate_multiplier: float = Field(
        1.0, gt=0, le=100, exclude_if=lambda factor: factor == 1
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    per_device_batch_size: int = Field(8, ge=1, le=4096)
    gradient_accumulation_steps: int = Field(1, ge=1, le=4096)
    max_length: int = Field(512, ge=8, le=1_048_576)
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    gradient_checkpointing: bool = False
    validation_split: float = Field(0.0, ge=0, le=0.5)

    @model_validator(mode="before")
    @classmethod
    def _notes_what_is_open(cls, given: Any) -> Any:
        """Take "auto" out before the numbers are checked: their errors stay those of numbers."""
        if not isinstance(given, dict):
            return given
        named = [name for name in AUTO_FIELDS if given.get(name) == AUTO]
        if not named:
            return given
        kept = {name: value for name, value in given.items() if name not in named}
        listed = kept.get(AUTO)
        before = listed if isinstance(listed, list | tuple) else ()
        return kept | {AUTO: (*before, *(name for name in named if name not in before))}

    @model_validator(mode="after")
    def _multiplies_what_is_open(self) -> Self:
        if self.learning_rate_multiplier != 1 and "learning_rate" not in self.auto:
            raise ValueError('learning_rate_multiplier goes with learning_rate "auto" alone')
        return self


class Offline(Training):
    """A method that learns from answers that are in its rows.

    The held-out rows are also looked at after every `eval_steps` steps, or else every epoch where
    `early_stopping_patience` is set: so many evaluations in a row without a lower loss end the run.
    """

    eval_steps: int | None = Field(None, ge=1, le=10_000_000)
    early_stopping_patience: int | None = Field(None, ge=1, le=1000)


class Online(Training):
    """A method that learns from answers of its own, each of them scored by a reward.

    `max_length` bounds the prompt and `max_completion_length` the answer, in tokens. The reward is
    that of `reward_model`, the id of a reward adapter, or of `grader`. KL is the mean over answers
    of the sum over their tokens of log pi(token) - log pi_start(token), natural log; above
    `max_kl` the job warns, or stops.
    """

    num_train_epochs: float = Field(1.0, gt=0, le=1000)
    learning_rate: float = Field(5e-5, gt=0, le=1)
    max_completion_length: int = Field(128, ge=1, le=1_048_576)
    temperature: float = Field(1.0, gt=0, le=10)
    reward_model: str | None = Field(None, min_length=1, max_length=64)
    grader: Grader | None = None
    max_kl: float | None = Field(None, gt=0, le=1e6)
    on_max_kl: Literal["warn", "stop"] = "warn"

    @model_validator(mode="after")
    def _has_a_reward(self) -> Self:
        if (self.reward_model is None) == (self.grader is None):
            raise ValueError("give exactly one of `reward_model`, an adapter's id, and `grader`")
        return self


class Resources(Asked):
    """What a job runs on: so many GPUs of each of `nodes` machines.

    Its steps are larger by them: each GPU takes `per_device_batch_size` rows at a time. On workers
    without GPUs they are processes that share the cores.
    """

    gpus: int = Field(1, ge=1, le=64)
    nodes: int = Field(1, ge=1, le=64)

    @property
    def processes(self) -> int:
        return self.gpus * self.nodes


class SftMethod(Offline):
    """Supervised fine-tuning: next-token cross-entropy on the assistant's tokens only.

    With `packing`, examples share rows of at most `max_length` tokens; each still reads itself
    alone, from position 0. A batch is then so many rows. `kl_coef` weighs KL(pi || pi_base), the
    mean over trained tokens in nats, over the whole vocabulary: what it costs to move away from the
    base model, which it is also where the job goes on with an adapter.
    """

    type: Literal["sft"] = "sft"
    packing: bool = False
    kl_coef: float = Field(0.0, ge=0, le=100)


class RewardMethod(Offline):
    """A scalar head that scores the chosen answer above the rejected one (Bradley-Terry).

    Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, equation 1; by the row's `margin` where it
    has one (Touvron et al. 2023, https://arxiv.org/abs/2307.09288, equation 2).
    `center_rewards_coefficient` weighs the square of the sum of both rewards, which draws their
    mean to zero (Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244).
    """

    type: Literal["reward"] = "reward"
    center_rewards_coefficient: float | None = Field(None, ge=0, le=100)


class DpoMethod(Offline):
    """Direct preference optimization (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290).

    `beta` is how much a step away from the starting policy costs. `label_smoothing` is the chance
    that a label is flipped, for the losses `robust` and `exo_pair`.
    """

    type: Literal["dpo"] = "dpo"
    learning_rate: float = Field(5e-5, gt=0, le=1)
    beta: float = Field(0.1, gt=0, le=100)
    loss_type: DpoLoss = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)

    @model_validator(mode="after")
    def _smooths_where_it_must(self) -> Self:
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss_type exo_pair needs a label_smoothing above 0, such as 0.001")
        if self.label_smoothing and self.loss_type not in ("robust", "exo_pair"):
            raise ValueError("label_smoothing is for the loss types robust and exo_pair alone")
        return self


class OrpoMethod(Offline):
    """Odds-ratio preference optimization (Hong et al. 2024, https://arxiv.org/abs/2403.07691).

    One stage and no reference: the chosen answer is learned as in SFT, and `beta` (the paper's
    lambda) weighs the log odds ratio between the two answers.
    """

    type: Literal["orpo"] = "orpo"
    learning_rate: float = Field(5e-5, gt=0, le=1)
    beta: float = Field(0.1, gt=0, le=100)


class KtoMethod(Offline):
    """Kahneman-Tversky optimization from unpaired labels (Ethayarajh et al. 2024,
    https://arxiv.org/abs/2402.01306).

    The KL to the starting policy is estimated from other rows' answers within a batch, so a batch
    holds two rows at least.
    """

    type: Literal["kto"] = "kto"
    learning_rate: float = Field(5e-5, gt=0, le=1)
    per_device_batch_size: int = Field(8, ge=2, le=4096)
    beta: float = Field(0.1, gt=0, le=100)
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    desirable_weight: float = Field(1.0, gt=0, le=1000)
    undesirable_weight: float = Field(1.0, gt=0, le=1000)


class PpoMethod(Online):
    """Proximal policy optimization with a KL penalty (Schulman et al. 2017,
    https://arxiv.org/abs/1707.06347; Ouyang et al. 2022, https://arxiv.org/abs/2203.02155).

    A step samples `per_device_batch_size * gradient_accumulation_steps` answers, then makes
    `num_ppo_epochs` passes over them in `num_mini_batches` updates each. With `kl_control`
    adaptive, `kl_coef` follows `kl_target` (Ziegler et al. 2019, https://arxiv.org/abs/1909.08593,
    section 2.2), the slower the longer `kl_horizon` is, in answers. `missing_eos_penalty` is taken
    off the reward of an answer that does not end by itself.
    """

    type: Literal["ppo"] = "ppo"
    num_ppo_epochs: int = Field(4, ge=1, le=100)
    num_mini_batches: int = Field(1, ge=1, le=4096)
    kl_coef: float = Field(0.05, ge=0, le=100)
    kl_control: Literal["fixed", "adaptive"] = "fixed"
    kl_target: float = Field(6.0, gt=0, le=1e6)
    kl_horizon: float = Field(10_000.0, gt=0, le=1e12)
    cliprange: float = Field(0.2, gt=0, lt=1)
    cliprange_value: float = Field(0.2, gt=0, le=100)
    vf_coef: float = Field(0.1, ge=0, le=100)
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    whiten_rewards: bool = False
    missing_eos_penalty: float = Field(0.0, ge=0, le=1e6)

    @model_validator(mode="after")
    def _fits_in_mini_batches(self) -> Self:
        answers = self.per_device_batch_size * self.gradient_accumulation_steps
        if answers % self.num_mini_batches and "per_device_batch_size" not in self.auto:
            raise ValueError(f"num_mini_batches does not divide the {answers} answers of a step")
        return self


class GrpoMethod(Online):
    """Group-relative policy optimization (Shao et al. 2024, https://arxiv.org/abs/2402.03300).

    Each prompt is answered `num_generations` times, and an answer's advantage is its reward against
    those of its group. `beta` weighs the KL to the starting policy, which here is a mean over
    tokens, by the paper's estimator (equation 4).
    """

    type: Literal["grpo"] = "grpo"
    num_generations: int = Field(8, ge=2, le=1024)
    num_iterations: int = Field(1, ge=1, le=100)
    beta: float = Field(0.0, ge=0, le=100)
    epsilon: float = Field(0.2, gt=0, lt=1)
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = (
        "dapo"
    )
    scale_rewards: Literal["group", "batch", "none"] = "group"

    @model_validator(mode="after")
    def _fits_in_groups(self) -> Self:
        answers = self.per_device_batch_size * self.gradient_accumulation_steps
        if answers % self.num_generations and "per_device_batch_size" not in self.auto:
            raise ValueError(
                f"num_generations does not divide the {answers} answers of a step "
                "(per_device_batch_size * gradient_accumulation_steps)"
            )
        if self.max_kl is not None and not self.beta:
            raise ValueError("max_kl needs a beta above 0, without which no KL is measured")
        return self


def _leaves_the_base(start: Any) -> Any:
    if isinstance(start, str) and start.lower().startswith(_CHANGING_STARTS):
        raise ValueError(
            f"{start} changes the base's own weights or needs data of its own, so its result could "
            'not be served on a base that others share; use true, "gaussian" or "orthogonal"'
        )
    return start


_CHANGING_STARTS = ("pissa", "olora", "loftq", "corda", "mica", "eva", "lora_ga")

# How A and B begin, always with B A = 0. True: A uniform (Kaiming), B zero. Gaussian: A normal, B
# zero. Orthogonal: both at once, from the rows of one random rotation, which takes an even r.
InitLoraWeights = Annotated[
    Literal[True, "gaussian", "orthogonal"], BeforeValidator(_leaves_the_base)
]


class LowRank(Asked):
    """What LoRA on a plain base and on a quantized one have in common.

    use_dora: weight-decomposed (Liu et al. 2024, https://arxiv.org/abs/2402.09353, eq. 5), with a
    trained length for each output: m * (W + s B A) / ||W + s B A||.
    """

    r: int = Field(16, ge=1, le=4096)
    lora_alpha: float = Field(32.0, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False

    @model_validator(mode="after")
    def _names_modules(self) -> Self:
        if not self.target_modules:
            raise ValueError('target_modules is empty; name at least one, or use "all-linear"')
        return self


class LoraPeft(LowRank):
    """LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685): W + (lora_alpha / r) B A."""

    type: Literal["lora"] = "lora"
    init_lora_weights: InitLoraWeights = True


class QloraPeft(LowRank):
    """QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314): LoRA on a base in 4-bit NF4.

    use_double_quant: the quantization's own constants are quantized too (section 3). The result is
    LoRA, or DoRA, as on a plain base, and served on the base as it is.
    """

    type: Literal["qlora"] = "qlora"
    use_double_quant: bool = True


class PromptTuningPeft(Asked):
    """Prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691): embeddings in front.

    They begin as those of random tokens of the base's vocabulary, as those of a text (cut, or
    repeated, to their number), or as normal noise.
    """

    type: Literal["prompt_tuning"] = "prompt_tuning"
    num_virtual_tokens: int = Field(20, ge=1, le=MAX_VIRTUAL_TOKENS)
    prompt_tuning_init: Literal["sample_vocab", "text", "random"] = "sample_vocab"
    prompt_tuning_init_text: str | None = Field(None, min_length=1, max_length=10_000)

    @model_validator(mode="after")
    def _text_where_it_begins_so(self) -> Self:
        if (self.prompt_tuning_init == "text") != (self.prompt_tuning_init_text is not None):
            raise ValueError('prompt_tuning_init_text goes with prompt_tuning_init "text" alone')
        return self


class PrefixTuningPeft(Asked):
    """Prefix tuning (Li & Liang 2021, https://arxiv.org/abs/2101.00190): in front, in every layer.

    The keys and values of the virtual tokens are trained themselves; with prefix_projection they
    are what a network of one hidden layer makes of a smaller matrix (section 4.3). The result has
    the keys and values, not the network, so a job that goes on with it goes on without.
    """

    type: Literal["prefix_tuning"] = "prefix_tuning"
    num_virtual_tokens: int = Field(20, ge=1, le=MAX_VIRTUAL_TOKENS)
    prefix_projection: bool = False
    encoder_hidden_size: int = Field(PREFIX_ENCODER_SIZE, ge=1, le=65_536)

    @model_validator(mode="after")
    def _sized_where_it_projects(self) -> Self:
        if not self.prefix_projection and self.encoder_hidden_size != PREFIX_ENCODER_SIZE:
            raise ValueError("encoder_hidden_size goes with prefix_projection alone")
        return self


class FullPeft(Asked):
    """Full fine-tuning: every weight of the base is trained."""

    type: Literal["full"] = "full"


Method = Annotated[
    SftMethod | RewardMethod | PpoMethod | DpoMethod | GrpoMethod | OrpoMethod | KtoMethod,
    Field(discriminator="type"),
]
Peft = Annotated[
    LoraPeft | QloraPeft | PromptTuningPeft | PrefixTuningPeft | FullPeft,
    Field(discriminator="type"),
]

# What the result of a kind of PEFT is to whoever serves it.
AdapterKind = Literal["lora", "prompt_tuning", "prefix_tuning", "full", "reward"]
KIND_OF_PEFT: dict[str, AdapterKind] = {
    "lora": "lora",
    "qlora": "lora",
    "prompt_tuning": "prompt_tuning",
    "prefix_tuning": "prefix_tuning",
    "full": "full",
}
# The kind of PEFT that an adapter's own files show: of LoRA, they do not tell on which base.
PEFT_OF_KIND: dict[AdapterKind, type[Asked]] = {
    "lora": LoraPeft,
    "prompt_tuning": PromptTuningPeft,
    "prefix_tuning": PrefixTuningPeft,
    "full": FullPeft,
}

# Which row type a method learns from.
ROWS_OF_METHOD: dict[str, RowType] = {
    "sft": "conversation",
    "reward": "preference",
    "ppo": "prompt",
    "dpo": "preference",
    "grpo": "prompt",
    "orpo": "preference",
    "kto": "rating",
}
