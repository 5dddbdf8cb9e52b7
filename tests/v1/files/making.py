"""Files in OpenAI's formats."""

import json
from typing import Any

USER = {"role": "user", "content": "say the number"}
ANSWER = {"role": "assistant", "content": "it is 7"}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"city": "Rome"}'},
}
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
}


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def chat(number: int = 0) -> dict[str, Any]:
    return {"messages": [USER, ANSWER | {"content": f"it is {number}"}]}


CHATS = jsonl(*map(chat, range(12)))
