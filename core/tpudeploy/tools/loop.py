"""Question, calls, results, answer: replies of a model until one asks for nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

from tpudeploy.contracts.chat import Message, ToolCall
from tpudeploy.errors import SequenceTooLongError
from tpudeploy.runtime.conversation import Conversation
from tpudeploy.runtime.generator import never
from tpudeploy.runtime.reply import Reply
from tpudeploy.runtime.writer import Cancelled
from tpudeploy.tools.function import ArgumentsError, ToolFunction
from tpudeploy.tools.results import LONGEST_RESULT, bounded, describe_failure, error_text, result_text
from tpudeploy.tools.toolbox import TERMINATED, Toolbox

MAX_ROUNDS = 8
"""Times that a model may ask for calls before it must have answered."""
SHORTEST_RESULT = 100
"""Characters below which a result that does not fit is not cut any further."""


class Status(Enum):
    """What became of a call."""

    RAN = "ran"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    DECLINED = "declined"
    MALFORMED = "malformed"
    INVALID = "invalid arguments"
    UNKNOWN = "unknown tool"
    NOT_RUN = "not run"


class Permission(Enum):
    """Whether a call may run; nobody there to ask ends the loop."""

    YES = "yes"
    NO = "no"
    NOBODY = "nobody"


@dataclass(frozen=True)
class Outcome:
    """A call, and what became of it.

    :param round: 1 for the calls of the first reply.
    :param result: what the model is told.
    """

    call: ToolCall
    round: int
    status: Status
    result: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the call, its round and status, and the result of one that was tried."""
        said = {} if self.status is Status.NOT_RUN else {"result": self.result}
        return {**self.call.model_dump(mode="json"), "round": self.round, "status": self.status.value, **said}


class Attendant(Protocol):
    """Whoever sits at the tools: is asked before a call runs, and told what became of each."""

    def permit(self, function: ToolFunction, arguments: dict[str, Any]) -> Permission:
        """Whether a call may run. :param arguments: as the model gave them; they fit the function."""

    def running(self) -> AbstractContextManager[object]:
        """Around a running tool."""
        return nullcontext()

    def tell(self, outcome: Outcome) -> None:
        """A call is over, or will never run."""

    def give_up(self, rounds: int) -> None:
        """The model asked for calls once more after so many rounds; they are not run."""


class ToolLoop:
    """A conversation whose model may call functions.

    :param max_rounds: replies with calls, a question, of which the calls are run.
    """

    def __init__(
        self, conversation: Conversation, toolbox: Toolbox, attendant: Attendant, *, max_rounds: int = MAX_ROUNDS
    ) -> None:
        self._conversation = conversation
        self._toolbox = toolbox
        self._attendant = attendant
        self._max_rounds = max_rounds
        self.outcomes: list[Outcome] = []
        """What became of the calls of the last question, in order."""

    @property
    def pending(self) -> tuple[Outcome, ...]:
        """Calls of the last question that were not run, so that its answer is not complete."""
        return tuple(outcome for outcome in self.outcomes if outcome.status is Status.NOT_RUN)

    def ask(self, text: str, *, cancelled: Cancelled = never) -> Iterator[Reply]:
        """Replies one by one, each to be iterated to its end before the next is taken.

        Between two of them the calls of the first are run. The last asks for none, or its calls are :attr:`pending`.

        :raises SequenceTooLongError: the question, or what the tools said, does not fit.
        """
        self.outcomes = []
        reply = self._conversation.ask(text, cancelled=cancelled)
        for number in range(1, self._max_rounds + 2):
            yield reply
            calls = reply.answer.tool_calls
            if not calls or reply.result.finish_reason == "cancelled":
                return
            outcomes = self._round(calls, number, cancelled)
            self.outcomes += outcomes
            if any(outcome.status is Status.NOT_RUN for outcome in outcomes):
                self._conversation.add(*_messages(outcomes))
                return
            reply = self._send(len(outcomes), cancelled)

    def _round(self, calls: Sequence[ToolCall], number: int, cancelled: Cancelled) -> list[Outcome]:
        """Run the calls of one reply in order. Who is interrupted while being asked leaves no call without a result."""
        outcomes: list[Outcome] = []
        may_run = number <= self._max_rounds and not cancelled()
        if number > self._max_rounds:
            self._attendant.give_up(self._max_rounds)
        limit = max(SHORTEST_RESULT, min(LONGEST_RESULT, self._conversation.stats.seq_length) // len(calls))
        for call in calls:
            if not may_run or any(outcome.status is Status.NOT_RUN for outcome in outcomes):
                outcome = Outcome(call, number, Status.NOT_RUN, error_text("It was not run."))
            else:
                try:
                    outcome = self._judge(call, number)
                except BaseException:
                    left = calls[len(outcomes) :]
                    stopped = [Outcome(call, number, Status.NOT_RUN, error_text("Stopped.")) for call in left]
                    self._conversation.add(*_messages([*outcomes, *stopped]))
                    raise
            outcome = replace(outcome, result=bounded(outcome.result, limit))
            self._attendant.tell(outcome)
            outcomes.append(outcome)
        return outcomes

    def _judge(self, call: ToolCall, number: int) -> Outcome:
        """Run one call, if there is such a tool, its arguments fit and it may."""
        function = self._toolbox.functions.get(call.name)
        if function is None:
            names = ", ".join(self._toolbox.functions)
            return Outcome(call, number, Status.UNKNOWN, error_text(f"There is no such tool. There are: {names}."))
        if call.arguments is None:
            return Outcome(call, number, Status.MALFORMED, error_text("The arguments could not be read."))
        try:
            values = function.read(call.arguments)
        except ArgumentsError as error:
            return Outcome(call, number, Status.INVALID, error_text(str(error)))
        permission = self._attendant.permit(function, call.arguments)
        if permission is Permission.NOBODY:
            return Outcome(call, number, Status.NOT_RUN, error_text("It was not run."))
        if permission is Permission.NO:
            return Outcome(call, number, Status.DECLINED, error_text("The user did not allow this call."))
        status, result = self._run(lambda: function.call(values))
        return Outcome(call, number, status, result)

    def _run(self, call: Callable[[], object]) -> tuple[Status, str]:
        try:
            with self._attendant.running():
                return Status.RAN, result_text(call())
        except KeyboardInterrupt:
            return Status.INTERRUPTED, error_text("The user stopped this call.")
        except SystemExit as error:
            if error.code == TERMINATED:  # not the tool's wish: the program is told to end
                raise
            return Status.FAILED, error_text(f"SystemExit: {error.code}")
        except BaseException as error:  # noqa: BLE001 - a tool is anybody's code, and its failure is an answer
            return Status.FAILED, error_text(describe_failure(error))

    def _send(self, count: int, cancelled: Cancelled) -> Reply:
        """Send the results of the last ``count`` calls; the longest is cut again and again where they do not fit."""
        first = len(self.outcomes) - count
        while True:
            sent = self.outcomes[first:]
            try:
                return self._conversation.send(*_messages(sent), cancelled=cancelled)
            except SequenceTooLongError:
                lengths = [len(outcome.result) for outcome in sent]
                place = lengths.index(max(lengths))
                if lengths[place] <= SHORTEST_RESULT:
                    raise
                cut = bounded(sent[place].result, lengths[place] // 2)
                self.outcomes[first + place] = replace(sent[place], result=cut)


def _messages(outcomes: Sequence[Outcome]) -> list[Message]:
    return [Message(role="observation", content=outcome.result) for outcome in outcomes]
