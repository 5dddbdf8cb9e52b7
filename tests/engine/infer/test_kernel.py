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


@pytest.mark.parametrize(("n_in", "n_out"), [(96, 48), (1, 7), (33, 200)])
def test_it_is_the_sum_in_float32_rounded_once(
    compiled: kernel.Kernel, n_in: int, n_out: int
) -> None:
    torch.manual_seed(n_in)
    ranks, offset, width = [8, 0, 3, 8, 1], 10, n_in + n_out + 20
    weights = torch.randn(len(ranks), 8, width).bfloat16()
    inputs, output = torch.randn(5, n_in).bfloat16(), torch.randn(5, n_out).bfloat16()
    lora_a = weights[:, :, offset : offset + n_in].double()
    lora_b = weights[:, :, offset + n_in : offset + n_in + n_out].double()
    counts = (torch.arange(8)[None] < torch.tensor(ranks)[:, None]).double()
    inner = torch.einsum("ni,nri->nr", inputs.double(), lora_a) * counts
    exact = output.double() + torch.einsum("nr,nro->no", inner, lora_b)
    before = output.clone()
    compiled.add(inputs, compiled.rows(weights, ranks), offset, output)
    # Half of the distance of two neighbours in bfloat16, and some float32 rounding.
    assert torch.all((output.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4)
    assert torch.equal(output[1], before[1])


def test_what_is_not_a_number_stays_so(compiled: kernel.Kernel) -> None:
    weights = torch.ones(2, 1, 4).bfloat16()
    weights[1] = float("nan")
    output = torch.ones(2, 2).bfloat16()
    compiled.add(torch.ones(2, 2).bfloat16(), compiled.rows(weights, [1, 1]), 0, output)
    assert torch.equal(output[0], torch.full((2,), 3.0).bfloat16())
    assert output[1].isnan().all()
    output.fill_(float("inf"))
    compiled.add(torch.ones(2, 2).bfloat16(), compiled.rows(weights, [1, 0]), 0, output)
    assert output.isinf().all()


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
