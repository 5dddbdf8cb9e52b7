"""Templates that do not say where the assistant is to speak."""

from engine.contract import RenderContract
from engine.generation_prompt import prompt_warnings

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"


def warnings_of(template: str) -> tuple[str, ...]:
    contract = RenderContract(
        chat_template=template,
        bos_token=None,
        eos_token="</s>",
        pad_token_id=0,
        eos_token_id=1,
        stop_token_ids=(1,),
        tokenizer_sha256="0" * 64,
        default_template=False,
    )
    return prompt_warnings(contract)


def test_a_template_that_ignores_the_generation_prompt_is_told_of() -> None:
    (warning,) = warnings_of(TURNS)
    assert "no generation prompt" in warning
    assert "'<|assistant|>'" in warning


def test_a_template_with_a_generation_prompt_is_fine() -> None:
    assert warnings_of(TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}") == ()


def test_a_template_whose_answers_begin_with_nothing_of_their_own_needs_none() -> None:
    plain = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
    )
    assert warnings_of(plain) == ()


def test_a_template_that_refuses_such_a_conversation_is_left_to_the_rows() -> None:
    assert warnings_of("{{ raise_exception('no') }}") == ()
