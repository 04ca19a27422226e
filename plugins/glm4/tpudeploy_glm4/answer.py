"""What GLM-4 answers: turns of a metadata line and a body, as ChatGLM3's, with tool calls in JSON.

The authors' ``process_response`` decides what is what: an empty first line means text, any other names a tool.
"""

from __future__ import annotations

from tpudeploy.contracts.turn_answer import TurnAnswerStream, TurnFormat
from tpudeploy_glm4.tool_call import parse_tool_call

FORMAT = TurnFormat(next_turn="<|assistant|>", marker=("[[训练时间]]", "2023年"), parse_call=parse_tool_call)
"""The marker is what the model writes for the date of its training, and what the authors show for it."""

parse_answer = FORMAT.parse


class GLM4AnswerStream(TurnAnswerStream):
    """GLM-4's answer as it arrives."""

    def __init__(self, *, forced_tool: str | None = None) -> None:
        super().__init__(FORMAT, forced_tool=forced_tool)
