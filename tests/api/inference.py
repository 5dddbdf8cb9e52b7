"""A stand-in for the inference server, at the network's edge: it answers as it was told to."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

WORDS = ("one ", "two ", "three")
LOGPROBS = {
    "tokens": ["one two three"],
    "token_logprobs": [-0.5],
    "top_logprobs": [{"one two three": -0.5}],
    "text_offset": [0],
}
USAGE = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}


class Inference:
    """`asked` has the bodies that came; `answer` replaces what is said by itself."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: Response | None = None
        self.pieces: list[Any] | None = None
        self.pause_s = 0.0
        self.open_streams = 0
        self.patience = 0  # how many pauses a whole answer takes
        self.given_up = 0
        self.models = [{"id": "tiny", "parent": None}, {"id": "ad_0", "parent": "tiny"}]
        self.app = Starlette(
            routes=[
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/score", self._score, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/health", self._health),
            ]
        )

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": self.models})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if self.answer is not None:
            return self.answer
        if body.get("stream"):
            return StreamingResponse(self._stream(), media_type="text/event-stream")
        await self._think(request)
        logprobs = LOGPROBS if body.get("logprobs") is not None else None
        choice = {"text": "".join(WORDS), "finish_reason": "stop", "logprobs": logprobs}
        return JSONResponse({"choices": [choice | {"index": 0}], "usage": USAGE, "id": "cmpl"})

    async def _score(self, request: Request) -> Response:
        """The longest input is the best one."""
        body = await request.json()
        self.asked.append(body)
        if self.answer is not None:
            return self.answer
        await self._think(request)
        data = [{"index": i, "score": len(ids) / 4} for i, ids in enumerate(body["inputs"])]
        return JSONResponse({"model": body["model"], "data": data, "usage": USAGE})

    async def _think(self, request: Request) -> None:
        for _ in range(self.patience):
            if await request.is_disconnected():
                self.given_up += 1
                return
            await asyncio.sleep(self.pause_s)

    async def _stream(self) -> AsyncIterator[str]:
        pieces = self.pieces
        if pieces is None:
            pieces = [{"choices": [{"text": word}], "usage": None} for word in WORDS]
            pieces += [{"choices": [{"text": "", "finish_reason": "stop"}]}]
            pieces += [{"choices": [], "usage": USAGE}, "[DONE]"]
        self.open_streams += 1
        try:
            for piece in pieces:
                text = piece if isinstance(piece, str) else json.dumps(piece)
                yield f"{text}\n\n" if text.startswith(":") else f"data: {text}\n\n"
                await asyncio.sleep(self.pause_s)
        finally:
            self.open_streams -= 1
