"""``POST /v1/responses``: the newer form of a chat. Nothing is stored: a conversation is sent as a whole."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tpudeploy.server.answer_format import wants_json
from tpudeploy.server.bodies import ResponseBody
from tpudeploy.server.errors import unsupported
from tpudeploy.server.messages import conversation, tool_schemas
from tpudeploy.server.options import options_of
from tpudeploy.server.response_form import ResponseForm
from tpudeploy.server.response_input import chat_choice, chat_messages, chat_tools
from tpudeploy.server.routes.common import ANSWERS, Api
from tpudeploy.server.service import Question
from tpudeploy.server.tool_choice import choose_tools


def responses_router(api: Api) -> APIRouter:
    """The router."""
    router = APIRouter()

    @router.post("/v1/responses", responses=ANSWERS, response_model=None)
    async def create_response(body: ResponseBody, request: Request) -> Response:
        """Answer a conversation."""
        headers = api.check(body)
        api.log_prompt(request, body)
        _check(body)
        limits = api.settings.limits
        schemas = tool_schemas(chat_tools(body.tools), limits)
        tools, forced = choose_tools(chat_choice(body.tool_choice), schemas)
        messages = conversation(chat_messages(body), tools, api.service, limits)
        question = Question(
            prompt_ids=await api.service.encode_chat(messages, forced_tool=forced),
            options=options_of(body, api.settings, max_tokens=body.max_output_tokens),
            as_json=wants_json(body.text.format if body.text else None, tools, "text.format"),
            offers_tools=bool(tools),
            most_calls=1 if body.parallel_tool_calls is False else None,
            forced_tool=forced,
        )
        form = ResponseForm(api.service.model.name, body)
        return await api.answer(request, question, form, stream=bool(body.stream), headers=headers)

    return router


def _check(body: ResponseBody) -> None:
    if body.top_logprobs:
        raise unsupported("top_logprobs is not supported here. /v1/chat/completions has it.", "top_logprobs")
