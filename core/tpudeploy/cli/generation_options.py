"""The options of ``tpudeploy run`` that say what to ask and how to choose tokens."""

from __future__ import annotations

from typing import Annotated

import typer

Prompt = Annotated[
    str | None,
    typer.Argument(
        metavar="[PROMPT]",
        show_default=False,
        help="The question; '-' or a pipe reads it from stdin. Without one, in a terminal: a conversation.",
    ),
]
PromptIds = Annotated[
    str,
    typer.Option(
        "--prompt-ids",
        metavar="ID,...",
        envvar="TPUDEPLOY_PROMPT_IDS",
        show_default=False,
        help="Continue these token ids as they are; needs no tokenizer.",
    ),
]
System = Annotated[
    str,
    typer.Option("--system", metavar="TEXT", envvar="TPUDEPLOY_SYSTEM", show_default=False, help="System message."),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        metavar="N",
        envvar="TPUDEPLOY_MAX_NEW_TOKENS",
        min=1,
        show_default=False,
        help="Tokens of an answer at most; without it, as many as fit.",
    ),
]
IgnoreEos = Annotated[
    bool,
    typer.Option(
        "--ignore-eos",
        envvar="TPUDEPLOY_IGNORE_EOS",
        show_default=False,
        help="Go on after the end of an answer, as benchmarks do.",
    ),
]
Greedy = Annotated[
    bool,
    typer.Option(
        "--greedy",
        envvar="TPUDEPLOY_GREEDY",
        show_default=False,
        help="Always take the most likely token, whatever the options below say; so it is where none is given.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        envvar="TPUDEPLOY_TEMPERATURE",
        show_default=False,
        help="Over 0: draw tokens; higher is more varied. 1 where only --top-k or --top-p is given.",
    ),
]
TopK = Annotated[
    int,
    typer.Option("--top-k", metavar="K", envvar="TPUDEPLOY_TOP_K", help="Draw from the K most likely tokens; 0: all."),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p", metavar="P", envvar="TPUDEPLOY_TOP_P", help="Draw from the likeliest tokens that hold P together."
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        "--repetition-penalty",
        metavar="X",
        envvar="TPUDEPLOY_REPETITION_PENALTY",
        help="Over 1: make tokens that were seen less likely.",
    ),
]
PresencePenalty = Annotated[
    float,
    typer.Option(
        "--presence-penalty",
        metavar="X",
        envvar="TPUDEPLOY_PRESENCE_PENALTY",
        help="From -2 to 2. Over 0: make tokens that the answer has less likely.",
    ),
]
FrequencyPenalty = Annotated[
    float,
    typer.Option(
        "--frequency-penalty",
        metavar="X",
        envvar="TPUDEPLOY_FREQUENCY_PENALTY",
        help="From -2 to 2. Over 0: make tokens less likely with each time that the answer has them.",
    ),
]
Draft = Annotated[
    str,
    typer.Option(
        "--draft",
        metavar="NAME",
        envvar="TPUDEPLOY_DRAFT",
        help="Who guesses tokens that one pass then checks: prompt-lookup, a plugin's drafter, or none. "
        "It changes the speed of an answer, not the answer.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", envvar="TPUDEPLOY_SEED", show_default=False, help="Make drawing repeatable."),
]
Continue = Annotated[
    bool,
    typer.Option(
        "--continue",
        "-c",
        envvar="TPUDEPLOY_CONTINUE",
        show_default=False,
        help="Go on with the last conversation, with another model if you like; without MODEL, with the same.",
    ),
]
NoStore = Annotated[
    bool,
    typer.Option(
        "--no-store",
        envvar="TPUDEPLOY_NO_STORE",
        show_default=False,
        help="Keep nothing of this conversation on this machine: neither its messages nor what was typed.",
    ),
]
Markdown = Annotated[
    bool | None,
    typer.Option(
        "--markdown/--no-markdown",
        envvar="TPUDEPLOY_MARKDOWN",
        show_default=False,
        help="Render Markdown in a terminal; without it, where the terminal shows colours and NO_COLOR is not set.",
    ),
]
