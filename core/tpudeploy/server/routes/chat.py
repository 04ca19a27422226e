"""``POST /v1/chat/completions``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tpudeploy.server.answer_format import wants_json
from tpudeploy.server.bodies import ChatBody
from tpudeploy.server.chat_form import ChatForm
from tpudeploy.server.errors import invalid
from tpudeploy.server.messages import conversation, tool_schemas
from tpudeploy.server.options import options_of, stop_of
from tpudeploy.server.routes.common import ANSWERS, Api, wants_usage
from tpudeploy.server.service import Question
from tpudeploy.server.tool_choice import choose_tools


def chat_router(api: Api) -> APIRouter:
    """The router."""
    router = APIRouter()

    @router.post("/v1/chat/completions", responses=ANSWERS, response_model=None)
    async def create_chat_completion(body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        headers = api.check(body)
        api.log_prompt(request, body)
        _check(body)
        tools, forced = choose_tools(body.tool_choice, tool_schemas(body.tools, api.settings.limits))
        messages = conversation(body.messages, tools, api.service, api.settings.limits)
        question = Question(
            prompt_ids=await api.service.encode_chat(messages, forced_tool=forced),
            options=options_of(
                body,
                api.settings,
                max_tokens=body.max_completion_tokens or body.max_tokens,
                logprobs=body.top_logprobs or 0 if body.logprobs else None,
            ),
            stop=stop_of(body.stop, api.settings.limits),
            as_json=wants_json(body.response_format, tools, "response_format"),
            offers_tools=bool(tools),
            most_calls=1 if body.parallel_tool_calls is False else None,
            forced_tool=forced,
        )
        form = ChatForm(api.service.model.name, include_usage=wants_usage(body), logprobs=bool(body.logprobs))
        return await api.answer(request, question, form, stream=bool(body.stream), headers=headers)

    return router


def _check(body: ChatBody) -> None:
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs is only allowed with logprobs.", "top_logprobs")
