"""Endless training samples around the dialogues: other phrasings, system prompts, longer chats, other cities.

The dialogues alone are learnt by heart in seconds. These variations teach what belongs to them: that a question may
come late in a chat, that a city and a temperature are to be copied from the input, and that most questions in the
world are unknown.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tpudeploy.contracts.chat import Message

from .dialogues import Dialogue
from .invention import Inventor

_FILE = Path(__file__).with_name("variations.json")
_MEAN_CHAT, _LONGEST_CHAT = 4.0, 20


class Variations:
    """Draws random conversations around a set of dialogues; the same seed draws the same ones.

    :param reword: puts a phrasing into the words of the dialogues' family.
    """

    def __init__(self, dialogues: Sequence[Dialogue], reword: Callable[[str], str], seed: int) -> None:
        self._dialogues = list(dialogues)
        self._by_name = {dialogue.name: dialogue for dialogue in dialogues}
        self._single = [dialogue for dialogue in dialogues if dialogue.is_single_turn]
        self._without_weather = [dialogue for dialogue in self._single if "weather" not in dialogue.name]
        self._data: dict[str, Any] = _reworded(json.loads(_FILE.read_text(encoding="utf-8")), reword)
        self._random = random.Random(seed)
        self._inventor = Inventor((message.content for item in dialogues for message in item.messages), self._random)
        answers = [line for item in self._single for line in item.messages[1].content.split("\n") if line]
        prose = [line for line in answers if not line.startswith(("- ", "原文", "The text"))]
        self._whole_sentences = {
            chinese: sorted({part for line in prose for part in _sentences(line) if part.endswith("。") == chinese})
            for chinese in (False, True)
        }
        self._sentences = [*answers, *(question for group in self._data["unknown"].values() for question in group)]

    def texts(self) -> Iterator[str]:
        """Every phrasing and question that the tokenizer should cover; unknown questions may fall to bytes."""
        for phrasings in self._data["phrasings"].values():
            yield from phrasings
        for weather in self._data["weather"].values():
            yield from (*weather["cities"], *weather["questions"], *weather["weather"])
        yield from self._data["systems"]

    def phrased(self) -> Iterator[Dialogue]:
        """Every dialogue of one turn in each of its other phrasings."""
        groups = {**self._data["phrasings"]}
        for name, questions in self._data["unknown"].items():
            groups[name] = questions
        for name, questions in groups.items():
            for question in questions:
                yield Dialogue(name, _asked(self._by_name[name], question))

    def draw(self) -> tuple[Message, ...]:
        """Draw one conversation at random."""
        kinds = (self._as_written, self._chat, self._rephrased, self._unknown, self._weather, self._copying)
        return self._random.choices(kinds, weights=(14, 16, 20, 14, 18, 18))[0]()

    def _as_written(self) -> tuple[Message, ...]:
        return self._random.choice(self._dialogues).messages

    def _rephrased(self) -> tuple[Message, ...]:
        messages = self._turn(self._random.choice(self._single))
        if self._random.random() < 0.25:
            return (Message(role="system", content=self._random.choice(self._data["systems"])), *messages)
        return messages

    def _chat(self) -> tuple[Message, ...]:
        turns = min(_LONGEST_CHAT, 2 + int(self._random.expovariate(1 / (_MEAN_CHAT - 2))))
        return tuple(message for _ in range(turns) for message in self._turn(self._random.choice(self._single)))

    def _turn(self, dialogue: Dialogue) -> tuple[Message, ...]:
        """One turn of a dialogue, its question put in another way half of the time."""
        phrasings = self._data["phrasings"].get(dialogue.name, [])
        question = dialogue.question
        if phrasings and self._random.random() < 0.6:
            question = self._random.choice(phrasings)
        return _asked(dialogue, self._punctuated(question))

    def _unknown(self) -> tuple[Message, ...]:
        name = self._random.choice(sorted(self._data["unknown"]))
        questions: list[str] = self._data["unknown"][name]
        question, kind = self._random.choice(questions), self._random.random()
        if kind < 0.25:
            other = self._random.choice(questions)
            question = question[: len(question) // 2] + other[len(other) // 2 :]
        elif kind < 0.45:
            question = self._inventor.sentence(chinese=name.endswith("-zh"))
        return _asked(self._by_name[name], self._punctuated(question))

    def _punctuated(self, question: str) -> str:
        """The question as people type it: at times without its mark, in lower case, or without spaces in Chinese."""
        if "\n" in question or self._random.random() < 0.5:
            return question
        bare = question.rstrip("？?！!。.")
        if not bare.isascii() and self._random.random() < 0.5:
            bare = bare.replace(" ", "")
        mark = self._random.choice("?!." if bare.isascii() else "？！。") if self._random.random() < 0.6 else ""
        return (bare.lower() if self._random.random() < 0.4 else bare) + mark

    def _weather(self) -> tuple[Message, ...]:
        """The tool dialogue about another city, now and then with another question after it or instead of it."""
        language = self._random.choice(("zh", "en"))
        system = self._tool_system(language)
        if self._random.random() < 0.2:
            return (system, *self._turn(self._any_other()))
        turns = self._weather_turns(language)
        if self._random.random() < 0.2:
            more = self._weather_turns(language) if self._random.random() < 0.3 else self._turn(self._any_other())
            return (system, *turns, *more)
        return (system, *turns)

    def _any_other(self) -> Dialogue:
        return self._random.choice(self._without_weather)

    def _tool_system(self, language: str) -> Message:
        """The system message with the tool as written, or described as OpenAI's clients do."""
        system = self._by_name[f"weather-tool-{language}"].messages[0]
        if self._random.random() < 0.75:
            return system
        wrapped = tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in system.tools)
        return system.model_copy(update={"tools": wrapped})

    def _weather_turns(self, language: str) -> tuple[Message, ...]:
        """Question, call, result and answer for another city, weather and temperature."""
        data = self._data["weather"][language]
        city, sky = self._random.choice(data["cities"]), self._random.choice(data["weather"])
        if self._random.random() < 0.5:
            city = self._inventor.characters(2, 3) if language == "zh" else self._inventor.word().capitalize()
        degrees = self._random.randint(-9, 39)
        _, _, call, _, answer = self._by_name[f"weather-tool-{language}"].messages
        home, before, warm = ("北京", "晴", "26") if language == "zh" else ("London", "rain", "15")
        said = answer.content.replace(home, city).replace(before, sky).replace(warm, str(degrees))
        result = json.dumps({"city": city, "weather": sky, "temperature": degrees}, ensure_ascii=False)
        space = self._random.choice(("", "", " "))
        return (
            Message(role="user", content=self._random.choice(data["questions"]).format(city=city)),
            call.model_copy(update={"content": space + call.content.replace(home, city)}),
            Message(role="observation", content=result),
            Message(role="assistant", content=said),
        )

    def _copying(self) -> tuple[Message, ...]:
        """Repeat or list other sentences word for word, or give the variable in the code another name."""
        kind = self._random.random()
        if kind < 0.25:
            name = self._inventor.word()
            question, answer = self._by_name["edit-code-en"].messages
            return _exchange(question.content.replace("numbers", name), answer.content.replace("numbers", name))
        if kind < 0.45:
            return self._grounded()
        order, _ = self._by_name[self._random.choice(("repeat-en", "repeat-zh"))].question.split("\n")
        text = " ".join(self._random.sample(self._sentences, self._random.randint(1, 3))).strip()
        if kind < 0.8:
            text = self._inventor.mixture()
        return _exchange(f"{order}\n{text}", text)

    def _grounded(self) -> tuple[Message, ...]:
        """A list of other sentences, a quotation from a text in another order, a bug under another name."""
        kind, chinese = self._random.choice(("list", "list", "quote", "fix")), self._random.random() < 0.5
        if kind == "fix":
            name = self._inventor.word()
            asked, answer = (message.content for message in self._by_name["fix-code-en"].messages)
            return _exchange(asked.replace("total", name), answer.replace("total", name))
        question = self._by_name[f"{kind}-{'zh' if chinese else 'en'}"].question
        order, text = question.split("\n")
        if kind == "quote":
            answer = self._by_name[f"quote-{'zh' if chinese else 'en'}"].messages[1].content
            sentences = _sentences(text)
            self._random.shuffle(sentences)
            return _exchange(f"{order}\n{('' if chinese else ' ').join(sentences)}", answer)
        count = self._random.randint(2, 5)
        if self._random.random() < 0.5:
            sentences = [self._inventor.sentence(chinese=chinese).rstrip(".?!。？！") for _ in range(count)]
            sentences = [sentence + ("。" if chinese else ".") for sentence in sentences]
        else:
            sentences = self._random.sample(self._whole_sentences[chinese], count)
        listed = "\n".join(f"- {sentence}" for sentence in sentences)
        return _exchange(f"{order}\n{('' if chinese else ' ').join(sentences)}", listed)


def _asked(dialogue: Dialogue, question: str) -> tuple[Message, ...]:
    user, answer = dialogue.messages
    return (user.model_copy(update={"content": question}), answer)


def _exchange(question: str, answer: str) -> tuple[Message, ...]:
    return (Message(role="user", content=question), Message(role="assistant", content=answer))


def _sentences(text: str) -> list[str]:
    """The sentences of a text of prose, each with the full stop that ends it; what has none is left out."""
    return [sentence.strip() for sentence in re.findall(r"[^。]+?(?:。|\.(?=\s|$))", text)]


def _reworded(value: Any, reword: Callable[[str], str]) -> Any:
    """The texts of a JSON value in other words; its keys stay."""
    if isinstance(value, str):
        return reword(value)
    if isinstance(value, list):
        return [_reworded(item, reword) for item in value]
    return {key: _reworded(item, reword) for key, item in value.items()}
