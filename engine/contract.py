"""The render contract: how text becomes tokens, fixed when training starts and kept ever after."""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from engine.rows import Message
from engine.template import ChatTemplate, RenderError

# For bases without a chat template. A blank line and a heading begin each turn, the end-of-sequence
# token ends the assistant's, and texts are trimmed so that they cannot merge with the markup.
DEFAULT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "### {{ message.role | capitalize }}:\n{{ message.content | trim }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)


class RenderContract(BaseModel):
    """Chat template, special tokens and stop tokens; training, serving and export all use it.

    `special_tokens` are the named tokens a template may write besides bos and eos.
    `default_template` is true when the base brought no template and Luthier's plain one is used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chat_template: str
    bos_token: str | None
    eos_token: str
    pad_token_id: int
    eos_token_id: int
    stop_token_ids: tuple[int, ...]
    tokenizer_sha256: str
    default_template: bool
    special_tokens: dict[str, str] = {}

    def template(self) -> ChatTemplate:
        """The template with its special tokens; raises RenderError when it does not compile."""
        variables = {**self.special_tokens, "eos_token": self.eos_token}
        if self.bos_token is not None:
            variables["bos_token"] = self.bos_token
        return ChatTemplate(self.chat_template, variables)


def contract_of(model_dir: Path) -> RenderContract:
    """The contract a model folder implies; raises RenderError when files are missing or broken."""
    return contract_with(model_dir, load_tokenizer(model_dir))


def load_tokenizer(model_dir: Path) -> Tokenizer:
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        raise RenderError(
            f"{model_dir.name} has no tokenizer.json; save one with "
            "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise RenderError(f"{model_dir.name}/tokenizer.json cannot be read: {error}") from None


def tokenizer_sha256(model_dir: Path) -> str:
    return hashlib.sha256((model_dir / "tokenizer.json").read_bytes()).hexdigest()


def contract_with(model_dir: Path, tokenizer: Tokenizer) -> RenderContract:
    """contract_of with the folder's tokenizer, when that is loaded already."""
    config = read_json(model_dir / "tokenizer_config.json")
    eos_ids = ids_in(model_dir, "eos_token_id")
    named = special_tokens(model_dir, config)
    for name, ids in (("eos_token", eos_ids), ("bos_token", ids_in(model_dir, "bos_token_id"))):
        if ids and name not in config and name not in named:
            named[name] = token_of(tokenizer, ids[0], model_dir)
    bos, eos = named.pop("bos_token", None), named.pop("eos_token", None)
    if eos is None:
        raise RenderError(f"{model_dir.name} names no end-of-sequence token; set eos_token")
    eos_id = id_of(tokenizer, eos, model_dir)
    template = template_of(model_dir, config)
    pad = named.get("pad_token")
    contract = RenderContract(
        chat_template=DEFAULT_TEMPLATE if template is None else template,
        bos_token=bos,
        eos_token=eos,
        pad_token_id=eos_id if pad is None else id_of(tokenizer, pad, model_dir),
        eos_token_id=eos_id,
        stop_token_ids=(),
        tokenizer_sha256=tokenizer_sha256(model_dir),
        default_template=template is None,
        special_tokens=named,
    )
    stops = {eos_id, *eos_ids, *end_of_turn_ids(contract, tokenizer)}
    return contract.model_copy(update={"stop_token_ids": tuple(sorted(stops))})


def special_tokens(model_dir: Path, config: dict[str, Any]) -> dict[str, str]:
    """Named tokens from where transformers reads them (the map only counts for older folders)."""
    found = dict(config)
    if "added_tokens_decoder" not in config:
        found |= read_json(model_dir / "special_tokens_map.json")
    if isinstance(extra := config.get("extra_special_tokens"), dict):
        found |= extra
    texts = {name: text_of(value) for name, value in found.items() if name.endswith("_token")}
    return {name: text for name, text in texts.items() if text is not None}


def text_of(token: Any) -> str | None:
    """A token is written as its text, or as an object with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def template_of(model_dir: Path, config: dict[str, Any]) -> str | None:
    path = model_dir / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        template = {item.get("name"): item.get("template") for item in template}.get("default")
    return template if isinstance(template, str) else None


def ids_in(model_dir: Path, name: str) -> list[int]:
    """A token id, or several, of generation_config.json and config.json."""
    found: list[int] = []
    for file in ("generation_config.json", "config.json"):
        value = read_json(model_dir / file).get(name)
        found += [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]
    return list(dict.fromkeys(found))


def end_of_turn_ids(contract: RenderContract, tokenizer: Tokenizer) -> list[int]:
    """The added token, if any, with which the template itself ends an assistant's turn.

    Chat models often end a turn with a token of their own and do not list it among the
    end-of-sequence ids; who does not stop there generates the next user's turn too.
    """
    turns = [Message(role="user", content="Question"), Message(role="assistant", content="Answer")]
    try:
        text = contract.template().render(turns, add_generation_prompt=False, now=datetime.now())
    except RenderError:
        return []
    closing = text.rpartition("Answer")[2]
    added = tokenizer.get_added_tokens_decoder()
    ids: list[int] = tokenizer.encode(closing, add_special_tokens=False).ids
    return [i for i in ids if i in added and added[i].special][:1]


def id_of(tokenizer: Tokenizer, token: str, model_dir: Path) -> int:
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise RenderError(f"{model_dir.name}: {token!r} is not in its tokenizer.json")
    return found


def token_of(tokenizer: Tokenizer, token_id: int, model_dir: Path) -> str:
    found: str | None = tokenizer.id_to_token(token_id)
    if found is None:
        raise RenderError(f"{model_dir.name}: token id {token_id} is not in its tokenizer.json")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} when there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RenderError(f"{path.parent.name}/{path.name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RenderError(f"{path.parent.name}/{path.name} must hold a JSON object")
    return value
