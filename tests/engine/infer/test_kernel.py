"""The compiled delta of a bfloat16 base on a CPU, and a server that uses it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.infer import kernel
from engine.infer.probes import compute_logprobs
from tests.engine.infer.world import BASE_NAME, SENTENCES, World, complete, engine_of, load, serve


@pytest.fixture(scope="module")
def compiled() -> kernel.Kernel:
    found = kernel.load()
    assert found is not None
    return found


def packed_row(rank: int, width: int, gains: torch.Tensor | None = None) -> kernel.PackedRow:
    return kernel.PackedRow(rank, torch.randn(rank * width).bfloat16(), gains)


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize(("n_in", "n_out"), [(96, 48), (1, 7), (33, 200)])
def test_it_is_the_sum_in_float32_rounded_once(
    compiled: kernel.Kernel, n_in: int, n_out: int, length: int
) -> None:
    torch.manual_seed(n_in)
    before, behind = 10, 20
    width = before + n_in + n_out + behind
    own = [packed_row(8, width), None, packed_row(3, width), packed_row(8, width), None]
    inputs = torch.randn(5, length, n_in).bfloat16()
    output = torch.randn(5, length, n_out).bfloat16()
    exact = output.double()
    for row, lora in enumerate(own):
        if lora:
            layer = lora.weights[lora.rank * before : -lora.rank * behind].view(lora.rank, -1)
            lora_a, lora_b = layer.double().split([n_in, n_out], dim=1)
            exact[row] += inputs[row].double() @ lora_a.T @ lora_b
    found = compiled.add(inputs, kernel.Rows(own), (before, 0), output.clone(), None)
    # Half of the distance of two neighbours in bfloat16, and some float32 rounding.
    assert torch.all((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4)
    assert torch.equal(found[1], output[1])


def test_a_dora_also_lengthens_what_the_base_says_without_its_bias(compiled: kernel.Kernel) -> None:
    torch.manual_seed(0)
    gains = torch.randn(30)
    own = [packed_row(2, 12, gains), packed_row(2, 12)]
    inputs, output = torch.randn(2, 1, 8).bfloat16(), torch.randn(2, 1, 4).bfloat16()
    for bias in (None, torch.randn(4).bfloat16()):
        plain = compiled.add(inputs, kernel.Rows(own[1:] * 2), (0, 0), output.clone(), bias)
        assert torch.equal(
            plain[1], compiled.add(inputs, kernel.Rows(own), (0, 5), output.clone(), bias)[1]
        )
        lora_a, lora_b = own[0].weights.view(2, 12).double().split([8, 4], dim=1)
        given = output[0].double() - (0 if bias is None else bias.double())
        exact = output[0].double() + gains[5:9].double() * given
        exact += inputs[0].double() @ lora_a.T @ lora_b
        found = compiled.add(inputs, kernel.Rows(own), (0, 5), output.clone(), bias)[0]
        assert torch.all((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4)


def test_what_is_not_a_number_stays_so(compiled: kernel.Kernel) -> None:
    ones = kernel.PackedRow(1, torch.ones(4).bfloat16())
    wrong = kernel.PackedRow(1, torch.full((4,), float("nan")).bfloat16())
    inputs, output = torch.ones(2, 1, 2).bfloat16(), torch.ones(2, 1, 2).bfloat16()
    found = compiled.add(inputs, kernel.Rows([ones, wrong]), (0, 0), output, None)
    assert torch.equal(found[0], torch.full((1, 2), 3.0).bfloat16())
    assert found[1].isnan().all()
    output = torch.full((2, 1, 2), float("inf")).bfloat16()
    assert compiled.add(inputs, kernel.Rows([ones, None]), (0, 0), output, None).isinf().all()


def test_what_it_was_not_made_for_is_refused(compiled: kernel.Kernel) -> None:
    rows = kernel.Rows([packed_row(1, 4)])
    half = torch.ones(1, 1, 2).bfloat16()
    with pytest.raises(ValueError, match="for bfloat16"):
        compiled.add(half.float(), rows, (0, 0), half, None)
    with pytest.raises(ValueError, match="not these rows"):
        compiled.add(half.expand(2, 1, 2), rows, (0, 0), half.expand(2, 1, 2), None)


def test_a_bfloat16_base_serves_a_mixed_batch_as_near_as_bfloat16_is(world: World) -> None:
    names = ["ad_rank4", "ad_rank8", "ad_rslora", "ad_part", "ad_dora", "ad_prompt", BASE_NAME]
    prompts = [world.ids(text) for text in SENTENCES[:2]]
    asked = [(name, prompt) for name in names for prompt in prompts]
    body = {"max_tokens": 10, "temperature": 0.9, "seed": 4, "echo": True, "logprobs": 0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    with (
        serve(world, dtype="bfloat16", prefill_chunk=11) as client,
        ThreadPoolExecutor(len(asked)) as threads,
    ):
        assert engine_of(client).base.model.dtype == torch.bfloat16
        calls = [threads.submit(complete, client, model=n, prompt=p, **body) for n, p in asked]
        answers = [call.result()["choices"][0] for call in calls]
    worst, own = 0.0, 0.0
    for (name, prompt), answer in zip(asked, answers, strict=True):
        folder = None if name == BASE_NAME else world.root / name
        exact = compute_logprobs(load(world.base, folder), prompt + answer["token_ids"], 1)
        found = answer["logprobs"]["token_logprobs"][1:]
        worst = max(worst, *(abs(a - b) for a, b in zip(found, exact, strict=True)))
    plain = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.bfloat16).eval()
    for prompt in prompts:
        exact = compute_logprobs(load(world.base), prompt, 1)
        rounded = compute_logprobs(plain, prompt, 1)
        own = max(own, *(abs(a - b) for a, b in zip(rounded, exact, strict=True)))
    assert worst < 4 * own, "not further off than what bfloat16 does to the base itself"
