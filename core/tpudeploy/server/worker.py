"""A worker: one loaded model, and one thread that alone touches its engine.

Jobs come one at a time; a worker that is given one is busy until it has said its outcome. A net that fails may be one
bad answer or a lost device: the thread finds out by computing one token, and a worker that cannot is dead. Its engine
is then left alone, for a lost device may answer a call by ending the process.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import replace

from tpudeploy.errors import BackendError, TpuDeployError, UsageError
from tpudeploy.launch.loaded import LoadedModel
from tpudeploy.runtime.generator import GenerationOptions
from tpudeploy.runtime.json_constraint import JsonObject
from tpudeploy.server.answer_text import AnswerText
from tpudeploy.server.base_worker import BaseWorker, Changed, Report, common_prefix
from tpudeploy.server.job import Job, Outcome
from tpudeploy.server.recorded_generation import RecordedGeneration
from tpudeploy.server.service import End, Question, Usage

_log = logging.getLogger(__name__)


class Worker(BaseWorker):
    """Answers with a model of this process, which it closes."""

    def __init__(self, name: str, model: LoadedModel) -> None:
        super().__init__(name)
        self.model = model
        self._cached: tuple[int, ...] = ()
        self._report: Report = lambda worker, job, outcome: None
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # Not waited for when the process has to end at once.
        self._thread = threading.Thread(target=self._run, name=f"worker-{name}", daemon=True)

    @property
    def devices(self) -> tuple[int, ...]:
        """See :attr:`BaseWorker.devices`."""
        return self.model.devices

    def start(self, report: Report, changed: Changed) -> None:
        """See :meth:`BaseWorker.start`; what it reports comes from the worker's thread."""
        self._report = report
        self._thread.start()

    def assign(self, job: Job) -> None:
        """See :meth:`BaseWorker.assign`."""
        self.job = job
        self._jobs.put(job)

    def shared_prefix(self, ids: tuple[int, ...]) -> tuple[int, int]:
        """See :meth:`BaseWorker.shared_prefix`."""
        return self.model.engine.shared_prefix(ids), common_prefix(self._cached, ids)

    def stop(self, timeout_s: float) -> bool:
        """See :meth:`BaseWorker.stop`."""
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            outcome = self._answer(job)
            if outcome.worker_problem:
                _log.error("worker %s is lost: %s", self.name, outcome.worker_problem)
            self._report(self, job, outcome)
            if outcome.worker_problem:
                return
        self.model.close()

    def _answer(self, job: Job) -> Outcome:
        question = job.question
        try:
            options = self._options(question)
            generation = RecordedGeneration(self.model, question.prompt_ids, options, job.cancelled.is_set)
        except TpuDeployError as error:
            return Outcome(error=error)
        failure, problem = self._write(job, generation)
        self._cached = (*question.prompt_ids, *generation.result.token_ids)
        return Outcome(generation.result, generation.token_s, failure, problem)

    def _options(self, question: Question) -> GenerationOptions:
        if not question.as_json:
            return question.options
        text = self.model.require_text()
        form = JsonObject(text.tokenizer.token_bytes, lead=text.template.answer_lead if question.is_chat else "")
        return replace(question.options, constraint=form)

    def _write(self, job: Job, generation: RecordedGeneration) -> tuple[Exception | None, str]:
        """Generate and emit; returns what went wrong, and whether that was the end of this worker."""
        try:
            text = AnswerText(self.model, generation, job.question)
            for piece in text.pieces():
                job.emit(piece)
            result, reason = text.result, text.finish_reason
            if reason is not None:
                usage = Usage(result.prompt_tokens, result.reused_tokens, len(result.token_ids))
                job.emit(End(reason, usage, text.tool_calls))
        except UsageError as error:
            return error, ""
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the thread
            _log.error("worker %s: %s: %s", self.name, type(error).__name__, error, exc_info=_is_defect(error))
            return error, self._examine(error)
        return None, ""

    def _examine(self, error: Exception) -> str:
        """Whether the device still computes; why not, where it does not."""
        engine = self.model.engine
        try:
            engine.forget()
            if engine.gives_logits:
                engine.forward([0])
            else:
                engine.next_token([0])
            engine.forget()
        except Exception:  # noqa: BLE001 - in whichever way: nothing can be computed here
            return str(error) if isinstance(error, BackendError) else f"{type(error).__name__}: {error}"
        return ""


def _is_defect(error: Exception) -> bool:
    return not isinstance(error, TpuDeployError)
