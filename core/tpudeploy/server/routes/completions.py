"""``POST /v1/completions``: text goes on as it is, without a chat format around it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tpudeploy.server.bodies import CompletionBody
from tpudeploy.server.completion_form import CompletionForm
from tpudeploy.server.errors import invalid, unsupported
from tpudeploy.server.options import options_of, stop_of
from tpudeploy.server.routes.common import ANSWERS, Api, wants_usage
from tpudeploy.server.service import Question

_MAX_TOKENS = 16
"""What OpenAI's API gives where a request says nothing."""

Prompt = str | list[int]


def completions_router(api: Api) -> APIRouter:
    """The router."""
    router = APIRouter()

    @router.post("/v1/completions", responses=ANSWERS, response_model=None)
    async def create_completion(body: CompletionBody, request: Request) -> Response:
        """Continue a text, or token ids; several are answered one after the other."""
        headers = api.check(body)
        api.log_prompt(request, body)
        options = options_of(body, api.settings, max_tokens=body.max_tokens or _MAX_TOKENS, logprobs=body.logprobs)
        stop = stop_of(body.stop, api.settings.limits)
        prompts = prompts_of(body, api.settings.limits.prompts)
        questions = [Question(await _ids(api, prompt), options, stop, is_chat=False) for prompt in prompts]
        wants = {"include_usage": wants_usage(body), "logprobs": body.logprobs is not None}
        forms = [CompletionForm(api.service.model.name, **wants) for _ in questions]
        if len(questions) > 1:
            return await api.answer_all(request, questions, forms, headers)
        return await api.answer(request, questions[0], forms[0], stream=bool(body.stream), headers=headers)

    return router


def prompts_of(body: CompletionBody, most: int) -> list[Prompt]:
    """The prompts of a request. :raises ApiError: none, too many, or several to be streamed."""
    given = body.prompt
    if isinstance(given, str):
        return [given]
    prompts: list[Prompt] = [prompt for prompt in given if not isinstance(prompt, int)]
    if not prompts:
        numbers = [number for number in given if isinstance(number, int)]
        if not numbers:
            raise invalid("prompt is empty.", "prompt")
        return [numbers]
    if len(prompts) > most:
        raise invalid(f"A request has at most {most} prompts, not {len(prompts)}.", "prompt")
    if len(prompts) > 1 and body.stream:
        raise unsupported("Several prompts cannot be streamed. Ask for each by itself.", "prompt")
    return prompts


async def _ids(api: Api, prompt: Prompt) -> tuple[int, ...]:
    return await api.service.encode_text(prompt) if isinstance(prompt, str) else tuple(prompt)
