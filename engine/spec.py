"""What to learn and how: the Method and Peft unions. Torch-free, for api and trainer alike."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from engine.rows import RowType

# As many as anyone has found useful, several times over, and little enough to keep many resident.
MAX_VIRTUAL_TOKENS = 1024


class Spec(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SftMethod(Spec):
    """Supervised fine-tuning: next-token cross-entropy on the assistant's tokens only."""

    type: Literal["sft"] = "sft"
    num_train_epochs: float = Field(3.0, gt=0, le=1000)
    max_steps: int | None = Field(None, ge=1, le=10_000_000)
    learning_rate: float = Field(2e-4, gt=0, le=1)
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    per_device_batch_size: int = Field(8, ge=1, le=4096)
    gradient_accumulation_steps: int = Field(1, ge=1, le=4096)
    max_length: int = Field(512, ge=8, le=1_048_576)
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    gradient_checkpointing: bool = False


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


class LowRank(Spec):
    """What LoRA on a plain base and on a quantized one have in common."""

    r: int = Field(16, ge=1, le=4096)
    lora_alpha: float = Field(32.0, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    use_rslora: bool = False

    @model_validator(mode="after")
    def _names_modules(self) -> Self:
        if not self.target_modules:
            raise ValueError('target_modules is empty; name at least one, or use "all-linear"')
        return self


class LoraPeft(LowRank):
    """LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685): W + (lora_alpha / r) B A.

    use_dora: weight-decomposed (Liu et al. 2024, https://arxiv.org/abs/2402.09353, eq. 5), with a
    trained length for each output: m * (W + s B A) / ||W + s B A||.
    """

    type: Literal["lora"] = "lora"
    use_dora: bool = False
    init_lora_weights: InitLoraWeights = True


class QloraPeft(LowRank):
    """QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314): LoRA on a base in 4-bit NF4.

    use_double_quant: the quantization's own constants are quantized too (section 3). The result is
    plain LoRA, served on the base as it is.
    """

    type: Literal["qlora"] = "qlora"
    use_double_quant: bool = True


class PromptTuningPeft(Spec):
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


class PrefixTuningPeft(Spec):
    """Prefix tuning (Li & Liang 2021, https://arxiv.org/abs/2101.00190): in front, in every layer.

    The keys and values of the virtual tokens are trained themselves, without a projection.
    """

    type: Literal["prefix_tuning"] = "prefix_tuning"
    num_virtual_tokens: int = Field(20, ge=1, le=MAX_VIRTUAL_TOKENS)


class FullPeft(Spec):
    """Full fine-tuning: every weight of the base is trained."""

    type: Literal["full"] = "full"


Method = Annotated[SftMethod, Field(discriminator="type")]
Peft = Annotated[
    LoraPeft | QloraPeft | PromptTuningPeft | PrefixTuningPeft | FullPeft,
    Field(discriminator="type"),
]

# What the result of a kind of PEFT is to whoever serves it.
AdapterKind = Literal["lora", "prompt_tuning", "prefix_tuning", "full"]
KIND_OF_PEFT: dict[str, AdapterKind] = {
    "lora": "lora",
    "qlora": "lora",
    "prompt_tuning": "prompt_tuning",
    "prefix_tuning": "prefix_tuning",
    "full": "full",
}
# The kind of PEFT that an adapter's own files show: of LoRA, they do not tell on which base.
PEFT_OF_KIND: dict[AdapterKind, type[Spec]] = {
    "lora": LoraPeft,
    "prompt_tuning": PromptTuningPeft,
    "prefix_tuning": PrefixTuningPeft,
    "full": FullPeft,
}

# Which row type a method learns from.
ROWS_OF_METHOD: dict[str, RowType] = {"sft": "conversation"}
