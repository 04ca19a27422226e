"""What a model is asked when nobody says what."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shared_data import shared_path
from test_graph import source_of
from tiny import write_checkpoint
from tpudeploy.compile.source import ModelSource, open_source, parse_model
from tpudeploy.contracts.adapter import ModelVariant
from tpudeploy.contracts.chat import Message
from tpudeploy.errors import CheckpointError, TokenizerError
from tpudeploy.plugins import registry
from tpudeploy.settings import Settings
from tpudeploy.verify.prompts import default_prompts


@pytest.fixture
def demo(tmp_path: Path) -> ModelSource:
    adapter, variant = parse_model("chatglm3:demo", registry())
    return open_source(adapter, variant, Settings(home=tmp_path))


def with_dialogues(demo: ModelSource, folder: Path, text: str) -> ModelSource:
    """The demo, as if a plugin shipped it in ``folder`` with other dialogues."""
    shutil.copytree(demo.checkpoint.folder, folder / "checkpoint")
    (folder / "dialogues.json").write_text(text, encoding="utf-8")

    class Adapter(type(demo.adapter)):  # type: ignore[misc]
        def variants(self) -> Sequence[ModelVariant]:
            (own,) = [variant for variant in super().variants() if variant.name == "demo"]
            return [own.model_copy(update={"bundled": folder / "checkpoint"})]

    return replace(demo, adapter=Adapter())


def test_demo_is_asked_its_own_dialogues(demo: ModelSource) -> None:
    prompts = default_prompts(demo, chunk_tokens=128, longest=512)
    assert len(prompts) == 4
    dialogues = json.loads((demo.checkpoint.folder.parent / "dialogues.json").read_text(encoding="utf-8"))
    known = {dialogue["name"] for dialogue in dialogues}
    assert {prompt.name for prompt in prompts} <= known


def test_first_answer_is_left_to_the_model(demo: ModelSource, tmp_path: Path) -> None:
    messages: list[Mapping[str, str]] = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    source = with_dialogues(demo, tmp_path, json.dumps([{"name": "one", "messages": messages}]))
    (prompt,) = default_prompts(source, chunk_tokens=128, longest=512)
    template = source.adapter.chat_template(source.adapter.load_tokenizer(source.checkpoint.folder))
    assert list(prompt.ids) == template.encode([Message(role="user", content="Hello")])


@pytest.mark.parametrize("text", ["", "{}", "[5]", '[{"name": "x"}]', '[{"name": "x", "messages": [{"role": "cat"}]}]'])
def test_dialogues_that_cannot_be_read(demo: ModelSource, tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match=r"dialogues\.json does not hold dialogues"):
        default_prompts(with_dialogues(demo, tmp_path, text), chunk_tokens=128, longest=512)


def test_model_with_a_tokenizer_is_asked_questions(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, padded_vocab_size=65024, num_layers=1)
    shutil.copyfile(shared_path("tokenizers", "chatglm3", "tokenizer.model"), folder / "tokenizer.model")
    prompts = default_prompts(source_of(folder), chunk_tokens=128, longest=512)
    assert [prompt.name for prompt in prompts] == ["chat-zh", "chat-en"]


def test_wrong_tokenizer_is_told(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(TokenizerError):
        default_prompts(source_of(folder), chunk_tokens=128, longest=512)


class TestRandom:
    def test_the_same_each_time_and_one_longer_than_a_pass(self, tmp_path: Path) -> None:
        source = source_of(write_checkpoint(tmp_path))
        prompts = default_prompts(source, chunk_tokens=64, longest=256)
        assert [len(prompt.ids) for prompt in prompts] == [7, 23, 96]
        assert prompts == default_prompts(source, chunk_tokens=64, longest=256)
        assert all(0 <= token < source.config.vocab_size for prompt in prompts for token in prompt.ids)

    def test_what_does_not_fit_is_left_out(self, tmp_path: Path) -> None:
        prompts = default_prompts(source_of(write_checkpoint(tmp_path)), chunk_tokens=64, longest=30)
        assert [len(prompt.ids) for prompt in prompts] == [7, 23]
