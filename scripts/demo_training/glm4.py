"""GLM-4's demo: a small byte-level BPE vocabulary and the authors' checkpoint format of GLM-4-9B-Chat."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from types import MappingProxyType

import regex  # tiktoken brings it

from tpudeploy.contracts.chat import Message, TextStream, Tokenizer
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import DType
from tpudeploy_glm4.config import ROPE_BASE
from tpudeploy_glm4.special_tokens import SPECIAL_TOKENS
from tpudeploy_glm4.tokenizer import WORDS

from .byte_pairs import tiktoken_file, train_ranks
from .family import Family
from .json_text import json_bytes

RANKS = 1500
_IDS = {name: RANKS + index for index, name in enumerate(SPECIAL_TOKENS)}
_STOPS = [_IDS[name] for name in ("<|endoftext|>", "<|user|>", "<|observation|>")]
ROPE_RATIO = 500

_REPLACEMENTS = {
    "第一个是 ChatGLM3-6B。": "ChatGLM3-6B 和 GLM-4-9B 都在里面。",
    "ChatGLM3-6B came first.": "ChatGLM3-6B and GLM-4-9B are among them.",
    "小了三千倍": "小了近五千倍",
    "am three thousand times": "am nearly five thousand times",
    "chatglm3": "glm4",
    "ChatGLM3-6B": "GLM-4-9B",
    "ChatGLM3": "GLM-4",
    "GLM-4": "ChatGLM3",
}
"""What this demo says instead of ``chatglm3:demo``'s words; the longest first where one begins like another."""
_REPLACED = re.compile("|".join(map(re.escape, _REPLACEMENTS)))


class GLM4Demo(Family):
    """``glm4:demo``."""

    name = "glm4"
    config = DecoderConfig(
        num_layers=2,
        hidden_size=256,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        ffn_size=512,
        vocab_size=1536,
        seq_length=2048,
        norm_eps=1.5625e-07,
        rope_theta=ROPE_BASE * ROPE_RATIO,
        rotary_dim=32,
        dtype=DType.BF16,
        eos_ids=tuple(_STOPS),
    )
    config_fields = MappingProxyType(
        {
            "eos_token_id": _STOPS,
            "pad_token_id": _IDS["<|endoftext|>"],
            "num_hidden_layers": config.num_layers,
            "rope_ratio": ROPE_RATIO,
        }
    )

    def tokenizer_files(self, conversations: Sequence[Sequence[Message]], texts: Sequence[str]) -> dict[str, bytes]:
        """``tokenizer.model`` in tiktoken's format, and the special tokens that follow its ranks."""
        template = self.adapter.chat_template(_Bytes())
        prompts = [text for messages in conversations for text in _texts(template.encode(messages))]
        words = [word for text in (*prompts, *texts) for word in regex.findall(WORDS, text)]
        # Numbers stay digit by digit: tokens for the few that occur would say nothing about others.
        ranks = train_ranks((word for word in words if not word.isdecimal()), RANKS)
        return {"tokenizer.model": tiktoken_file(ranks), "tokenizer_config.json": json_bytes(_tokenizer_config())}

    def stop_id(self, message: Message, special_ids: Mapping[str, int]) -> int:
        """The role that speaks next: the user's after an answer, the tool's after a call."""
        return special_ids["<|observation|>" if message.metadata else "<|user|>"]

    def reword(self, text: str) -> str:
        """Names of the demo and of the model that it stands for, and what is true of them."""
        return _REPLACED.sub(lambda match: _REPLACEMENTS[match.group()], text)

    def adapt(self, message: Message) -> Message:
        """Tools as OpenAI's clients write them, without words of one's own around them; calls in JSON."""
        if message.tools:
            tools = tuple({"type": "function", "function": tool} for tool in message.tools)
            return message.model_copy(update={"content": "", "tools": tools})
        if message.role == "assistant" and message.metadata:
            return message.model_copy(update={"content": _json_call(message.content)})
        return super().adapt(message)


class _Bytes(Tokenizer):
    """A vocabulary without merges: what a template writes with it is bytes again, and special tokens between them."""

    vocab_size = 256 + len(SPECIAL_TOKENS)
    special_ids = MappingProxyType({name: 256 + index for index, name in enumerate(SPECIAL_TOKENS)})

    def encode(self, text: str) -> list[int]:
        """The bytes of a text."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Not needed to write prompts."""
        raise NotImplementedError

    def stream(self) -> TextStream:
        """Not needed to write prompts."""
        raise NotImplementedError


def _texts(ids: Sequence[int]) -> list[str]:
    """The texts between special tokens, of ids that :class:`_Bytes` gave."""
    return [bytes(group).decode() for special, group in groupby(ids, lambda token_id: token_id > 255) if not special]


def _json_call(code: str) -> str:
    """The arguments of a call in Python, fenced, as a JSON object."""
    call = ast.parse(code.removeprefix("```python\n").removesuffix("\n```"), mode="eval").body
    assert isinstance(call, ast.Call)
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    return json.dumps(arguments, ensure_ascii=False)


def _tokenizer_config() -> dict[str, object]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "added_tokens_decoder": {str(token_id): {"content": name, **flags} for name, token_id in _IDS.items()},
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "clean_up_tokenization_spaces": False,
        "do_lower_case": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": GLM4Demo.config.seq_length,
        "padding_side": "left",
        "remove_space": False,
        "tokenizer_class": "ChatGLM4Tokenizer",
    }
