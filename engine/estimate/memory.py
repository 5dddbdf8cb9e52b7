"""Peak memory by part, from sizes and the longest batch.

What a layer keeps for its backward pass is counted from the operations of a Llama's layer: its
norms, projections, rotations, attention and gated product, each output once. Attention itself is
computed in blocks (FlashAttention, Dao et al. 2022, https://arxiv.org/abs/2205.14135), so nothing
grows with the square of the length but a mask.
"""

from dataclasses import dataclass

from engine.estimate.base import BaseShape
from engine.estimate.model import Device, MemoryPart
from engine.estimate.parameters import adapter_parameters, trainable_parameters, value_parameters
from engine.spec import (
    DpoMethod,
    FullPeft,
    GrpoMethod,
    KtoMethod,
    LowRank,
    Method,
    Online,
    OrpoMethod,
    Peft,
    PpoMethod,
    PrefixTuningPeft,
    PromptTuningPeft,
    QloraPeft,
    RewardMethod,
    SftMethod,
)
from engine.steps import answers_a_step

PROCESS_BYTES = 510_000_000  # a forked child with torch, transformers, peft and trl: measured
# On a CPU the C library's allocator keeps what was freed between what is in use; measured.
ALLOCATOR = {"cpu": 1.5, "cuda": 1.05}
LAYERS_AT_ONCE = {"cpu": 4, "cuda": 1}  # of a checkpointed pass, for the same reason
FLOAT_BYTES: dict[Device, int] = {"cpu": 4, "cuda": 2}
ADAPTER_BYTES = 4  # adapters, their gradients and moments stay in float32 everywhere
# Copies of the logits that live at once: the logits themselves, their log-softmax, the gradient,
# and what a method looks at besides. None where a scalar is read instead.
LOGIT_COPIES = {"sft": 4, "dpo": 4, "kto": 4, "orpo": 3, "grpo": 4, "ppo": 6, "reward": 0}
# TRL's trainers compute log-probs in tiles of so many positions and tokens of the vocabulary.
TILED = frozenset({"sft", "dpo", "kto", "grpo"})
TILE_POSITIONS, TILE_TOKENS = 4096, 32_768
# With a KL to the base, SFT has both models' logits, their log-softmax, and gradients, untiled.
KL_LOGIT_COPIES = 7


@dataclass(frozen=True)
class Batch:
    """The largest batch: `sequences` of `length` positions; head: positions with logits."""

    sequences: int
    length: int
    head: int

    @property
    def positions(self) -> int:
        return self.sequences * self.length


def largest_batch(method: Method, peft: Peft, longest: int) -> Batch:
    """What one forward and backward pass holds where the longest rows meet."""
    virtual = peft.num_virtual_tokens if isinstance(peft, PromptTuningPeft) else 0
    answer = method.max_completion_length if isinstance(method, Online) else 0
    paired = isinstance(method, RewardMethod | DpoMethod | OrpoMethod | KtoMethod)
    sequences = method.per_device_batch_size * (2 if paired else 1)
    length = longest + answer + virtual
    return Batch(sequences, length, answer + 1 if answer else length)


def memory_parts(
    base: BaseShape,
    method: Method,
    peft: Peft,
    longest: int,
    device: Device,
    *,
    reward_peft: Peft | None = None,
    continues: bool = False,
) -> dict[str, MemoryPart]:
    """Each part's bytes. `continues`: from an adapter, of which PPO keeps a frozen copy."""
    trained = trainable_parameters(base, method, peft, reward_peft)
    a_number = FLOAT_BYTES[device] if isinstance(peft, FullPeft) else ADAPTER_BYTES
    batch = largest_batch(method, peft, longest)
    parts = _process(device) | _weights(base, peft, device)
    parts |= _companions(base, method, peft, device, reward_peft, continues)
    if not isinstance(peft, FullPeft):
        own = trained
        if isinstance(method, PpoMethod):
            own -= value_parameters(base, peft, reward_peft)
        parts["adapter"] = _part(own * a_number, f"{own:,} trained numbers in float32")
    parts["gradients"] = _part(trained * a_number, f"one for each of {trained:,} trained numbers")
    parts["optimizer"] = _part(2 * trained * a_number, "AdamW's two moments of each")
    parts["activations"] = _activations(base, method, peft, batch, device)
    parts |= _logits(base, method, batch)
    parts |= _generation(base, method, longest, device)
    parts |= _probes(base, peft, device)
    return parts


# What is needed at another moment than gradients, activations and logits are.
_WHILE_LEARNING = ("gradients", "activations", "logits")
_ELSEWHERE = ("generation", "probes")


def peak(parts: dict[str, MemoryPart]) -> int:
    """The most at one moment: of learning, sampling and the probes at the end, the largest."""
    sizes = {name: part.bytes for name, part in parts.items()}
    always = sum(n for name, n in sizes.items() if name not in _WHILE_LEARNING + _ELSEWHERE)
    learning = sum(sizes.get(name, 0) for name in _WHILE_LEARNING)
    return always + max(learning, *(sizes.get(name, 0) for name in _ELSEWHERE))


def _part(count: float, basis: str) -> MemoryPart:
    return MemoryPart(bytes=round(count), basis=basis)


def _process(device: Device) -> dict[str, MemoryPart]:
    """On a GPU, what the libraries hold in the machine's memory is not counted."""
    if device == "cuda":
        return {}
    return {"process": _part(PROCESS_BYTES, "the trainer with its libraries, measured")}


def _weights(base: BaseShape, peft: Peft, device: Device) -> dict[str, MemoryPart]:
    a_number = FLOAT_BYTES[device]
    name = "float32" if a_number == 4 else "bfloat16"
    if not isinstance(peft, QloraPeft):
        basis = f"{base.parameters:,} parameters in {name}"
        return {"weights": _part(base.parameters * a_number, basis)}
    # A scale for 64 numbers in float32, or doubly quantized in a byte and a bit.
    a_packed = 0.5 + (0.0159 if peft.use_double_quant else 4 / 64)
    packed = base.linear_parameters
    others = (base.parameters - packed) * a_number
    basis = f"{packed:,} parameters in 4 bits, the others in {name}"
    return {"weights": _part(packed * a_packed + others, basis)}


def _companions(
    base: BaseShape,
    method: Method,
    peft: Peft,
    device: Device,
    reward_peft: Peft | None,
    continues: bool,
) -> dict[str, MemoryPart]:
    """Reference, reward model and value function, as far as they need room of their own."""
    found: dict[str, MemoryPart] = {}
    whole = base.parameters * FLOAT_BYTES[device]
    own = adapter_parameters(base, peft) * ADAPTER_BYTES
    if isinstance(method, GrpoMethod) and method.beta:
        if isinstance(peft, FullPeft):
            found["reference"] = _part(whole, "a second copy of the base, for the KL")
        elif continues:
            found["reference"] = _part(own, "a copy of the adapter that training starts from")
    if isinstance(method, SftMethod) and method.kl_coef and isinstance(peft, FullPeft):
        found["reference"] = _part(whole, "a second copy of the base, for the KL")
    if isinstance(method, PpoMethod):
        value = value_parameters(base, peft, reward_peft)
        basis = f"{value:,} trained numbers: an adapter and its head, on the policy's base"
        found["value"] = _part(value * ADAPTER_BYTES, basis)
        if continues:
            found["reference"] = _part(own, "a copy of the adapter that training starts from")
    if reward_peft is not None:
        size = adapter_parameters(base, reward_peft) * ADAPTER_BYTES
        if not isinstance(peft, LowRank):
            size, why = size + whole, "the reward adapter on a copy of the base of its own"
        else:
            why = "the reward adapter, on the policy's base"
        found["reward"] = _part(size, why)
    return found


def _activations(
    base: BaseShape, method: Method, peft: Peft, batch: Batch, device: Device
) -> MemoryPart:
    a_number = FLOAT_BYTES[device]
    a_layer = _layer_numbers(base, peft) * a_number * batch.positions
    where = f"{batch.sequences} sequences of {batch.length} positions"
    if method.gradient_checkpointing:
        kept = base.hidden_size * a_number * batch.positions * base.layers
        whole = min(LAYERS_AT_ONCE[device], base.layers)
        basis = f"{where}: each layer's input, and {whole} in full"
        return _part((kept + whole * a_layer) * ALLOCATOR[device], basis)
    prefix = peft.num_virtual_tokens if isinstance(peft, PrefixTuningPeft) else 0
    keys = 2 * base.kv_heads * base.head_dim * prefix * batch.sequences * a_number * base.layers
    size = (a_layer * base.layers + keys) * ALLOCATOR[device]
    return _part(size, f"{where} in {base.layers} layers")


def _layer_numbers(base: BaseShape, peft: Peft) -> float:
    """Numbers that one layer keeps of a position until its backward pass."""
    queries, keys = base.heads * base.head_dim, base.kv_heads * base.head_dim
    # Two norms (the input, scaled, and weighed), two sums; queries and keys before and after their
    # rotation, values, keys and values repeated for every head, the attended; gate, up and product.
    plain = 8 * base.hidden_size + 5 * queries + 3 * keys + 4 * base.intermediate_size
    if not isinstance(peft, LowRank):
        return plain
    outputs = 2 * queries + 2 * keys + 2 * base.hidden_size + 2 * base.intermediate_size
    changed = outputs * (3 if peft.use_dora else 1)
    return plain + changed * (2 if peft.lora_dropout else 1)


def _logits(base: BaseShape, method: Method, batch: Batch) -> dict[str, MemoryPart]:
    copies = LOGIT_COPIES[method.type]
    if not copies:
        return {}
    whole = isinstance(method, SftMethod) and method.kl_coef > 0
    if whole:
        copies = KL_LOGIT_COPIES
    a_logit = 4  # the loss is computed in float32 everywhere
    positions, tokens = batch.sequences * batch.head, base.vocab_size
    if method.type in TILED and not whole:
        positions, tokens = min(positions, TILE_POSITIONS), min(tokens, TILE_TOKENS)
    size = positions * tokens * a_logit * copies
    basis = f"{positions:,} positions of {tokens:,} tokens in float32, {copies} times"
    return {"logits": _part(size, basis)}


def _generation(
    base: BaseShape, method: Method, longest: int, device: Device
) -> dict[str, MemoryPart]:
    if not isinstance(method, Online):
        return {}
    answers = answers_a_step(method)
    length = longest + method.max_completion_length
    cache = 2 * base.kv_heads * base.head_dim * base.layers * FLOAT_BYTES[device]
    size = answers * (length * cache + 2 * base.vocab_size * 4)
    basis = f"keys and values of {answers} answers of {length} tokens, while they are sampled"
    return {"generation": _part(size, basis)}


def _probes(base: BaseShape, peft: Peft, device: Device) -> dict[str, MemoryPart]:
    if not isinstance(peft, QloraPeft):
        return {}
    size = base.parameters * FLOAT_BYTES[device]
    return {"probes": _part(size, "the base as it is, on which the result is looked at")}
