"""The judge: a model that labels texts under a policy, in sequences beside its answers."""

from __future__ import annotations

from functools import partial
from weakref import WeakKeyDictionary

from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import Event, FinishEvent
from gptoss_mlx.engine.result import Result, collect
from gptoss_mlx.engine.runner import Runner
from gptoss_mlx.errors import GptOssError, OptionError
from gptoss_mlx.models.checkpoint import Progress
from gptoss_mlx.server.readers import Readers
from gptoss_mlx.server.registry import Opener, ServedModel
from gptoss_mlx.settings import Settings
from gptoss_mlx.tools.guard.guard import ClassifierError, Label
from gptoss_mlx.tools.guard.policy import TIME_LIMIT, PolicyPrompt
from gptoss_mlx.tools.guard.verdict import What


def judging_opener(
    opener: Opener, classify: PolicyJudge, judge: ServedModel | None, file: str
) -> Opener:
    """An opener that refuses a model that is to judge and cannot. judge: the only one that is to;
    None for each of them. file: the policy's, for the error."""

    def opened(argument: str, settings: Settings, progress: Progress) -> Engine:
        engine = opener(argument, settings, progress)
        if judge is None or judge.argument == argument:
            try:
                classify.prompt(engine)
            except BaseException as error:
                engine.close()
                if isinstance(error, OptionError):
                    raise OptionError(f"{file}: {error}") from error
                raise
        return engine

    return opened


class PolicyJudge:
    """An `AsyncClassifier`. time_limit: seconds of a label, once it is begun."""

    def __init__(self, policy: str, *, time_limit: float = TIME_LIMIT) -> None:
        self._policy, self._time_limit = policy, time_limit
        self._prompts: WeakKeyDictionary[Engine, PolicyPrompt] = WeakKeyDictionary()
        self._readers = Readers(2)

    async def __call__(self, runner: Runner, what: What, text: str) -> Label:
        """The label of the first part that violates the policy, else of the last."""
        label = Label(violation=False)
        try:
            prompt = await self._readers.run(partial(self.prompt, runner.engine))
            for part in await self._readers.run(partial(prompt.parts, text)):
                label = prompt.label(await self._answer(runner, prompt, what, part))
                if label.violation:
                    break
        except GptOssError as error:
            raise ClassifierError(str(error)) from error
        return label

    def prompt(self, engine: Engine) -> PolicyPrompt:
        """What a model is asked. Raises OptionError or MessageError for one that cannot judge."""
        if engine not in self._prompts:
            self._prompts[engine] = PolicyPrompt(engine, self._policy, time_limit=self._time_limit)
        return self._prompts[engine]

    def close(self) -> None:
        self._readers.close()

    async def _answer(self, runner: Runner, prompt: PolicyPrompt, what: What, part: str) -> Result:
        # A request waits its turn, and once it has been answered no longer.
        asked, urgent = [prompt.asked(what, part)], what != "input"
        sequences, mailbox = await self._readers.add(runner, asked, urgent=urgent)
        events: list[Event] = []
        try:
            while not (events and isinstance(events[-1], FinishEvent)):
                events += [event for _, event in await mailbox.take()]
        finally:
            runner.drop(sequences)
        return collect(events)
