"""``tpudeploy run``: answer a prompt, or hold a conversation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tpudeploy.cli import generation_options as how
from tpudeploy.cli import net_options, options, tool_options

if TYPE_CHECKING:
    from tpudeploy.cli.chat_keeper import Resumed
    from tpudeploy.cli.chat_settings import ChatSettings
    from tpudeploy.cli.question import Question
    from tpudeploy.cli.tool_calls import ToolSession
    from tpudeploy.launch import Target


def run(
    context: typer.Context,
    model: options.OptionalModel = "",
    prompt: how.Prompt = None,
    quant: options.Quant = "",
    backend: options.Backend = "auto",
    device: options.Devices = "",
    split: net_options.SplitBy = "tensor",
    model_dir: options.ModelDir = None,
    bundle: options.Bundle = None,
    bmodel: options.Bmodel = None,
    tokenizer_dir: options.TokenizerDir = None,
    mask: options.Mask = "",
    seq_length: options.SeqLength = None,
    system: how.System = "",
    prompt_ids: how.PromptIds = "",
    max_new_tokens: how.MaxNewTokens = None,
    ignore_eos: how.IgnoreEos = False,
    greedy: how.Greedy = False,
    temperature: how.Temperature = None,
    top_k: how.TopK = 0,
    top_p: how.TopP = 1.0,
    repetition_penalty: how.RepetitionPenalty = 1.0,
    presence_penalty: how.PresencePenalty = 0.0,
    frequency_penalty: how.FrequencyPenalty = 0.0,
    seed: how.Seed = None,
    draft: how.Draft = "prompt-lookup",
    tools: tool_options.Tools = None,
    max_tool_rounds: tool_options.MaxToolRounds = 8,
    yes: options.Yes = False,
    hub: options.Hub = "",
    force: options.Force = False,
    verify_files: options.VerifyFiles = False,
    offline: options.Offline = False,
    toolchain: options.Toolchain = None,
    as_json: options.Json = False,
    resume: how.Continue = False,
    no_store: how.NoStore = False,
    markdown: how.Markdown = None,
) -> None:
    """Answer a prompt, or hold a conversation.

    The answer goes to stdout, everything else to stderr. What has to be compiled first is compiled once and kept.
    """
    from tpudeploy.cli.bundles import local_bmodel, local_bundle
    from tpudeploy.cli.chat_settings import ChatSettings
    from tpudeploy.cli.question import read_question
    from tpudeploy.cli.tool_calls import open_tools
    from tpudeploy.cli.weights import ensure_weights
    from tpudeploy.launch import LaunchRequest, open_target
    from tpudeploy.launch.targets import check_names
    from tpudeploy.launch.usage import check_usage
    from tpudeploy.plugins import registry
    from tpudeploy.settings import load_settings

    settings = load_settings()
    resumed = _last(context, settings.home) if resume else None
    model, prompt = _model_and_prompt(model, prompt, resumed, bundle=bundle, bmodel=bmodel, prompt_ids=prompt_ids)
    generation = ChatSettings(
        registry(),
        max_new_tokens=max_new_tokens,
        ignore_eos=ignore_eos,
        greedy=greedy,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        draft=draft,
        markdown=markdown,
        store=not no_store,
    )
    request = LaunchRequest(
        model=model,
        bundle=bundle,
        bmodel=local_bmodel(bmodel) if bmodel is not None else None,
        tokenizer_dir=tokenizer_dir,
        mask=mask,
        model_dir=model_dir,
        quant=quant,
        backend=backend,
        devices=options.parse_ids(device, "--device") if device else (),
        split=net_options.parse_split(split),
        seq_length=seq_length,
        force=force,
        verify_files=verify_files,
    )
    session = open_tools(tools, yes=yes, max_rounds=max_tool_rounds, prompt_ids=prompt_ids)
    check_usage(request)  # before gigabytes are looked for, unpacked or compared
    if bundle is not None:
        request = request.model_copy(update={"bundle": local_bundle(bundle, backend=backend, force=force)})
    found = registry()
    known = check_names(request, found) if bundle is None else None  # told before stdin is read
    question = read_question(prompt, prompt_ids, system, as_json=as_json)
    if known is not None and bmodel is None:
        ensure_weights(known, settings, model_dir=model_dir, yes=yes, hub=hub)
    target = open_target(request, settings, found)
    _talk(target, question, generation, resumed, system=system, as_json=as_json, tools=session)


def _talk(
    target: Target,
    question: Question | None,
    settings: ChatSettings,
    resumed: Resumed | None,
    *,
    system: str,
    as_json: bool,
    tools: ToolSession | None,
) -> None:
    """Answer the question, or converse where there is none."""
    from tpudeploy.cli.answer import answer_once
    from tpudeploy.cli.chat import chat
    from tpudeploy.cli.chat_keeper import ChatKeeper
    from tpudeploy.cli.chat_store import ChatStore
    from tpudeploy.cli.terminal import print_note
    from tpudeploy.settings import load_settings

    kept = settings.store and (resumed is not None or question is None or not as_json)
    quiet = question is not None and resumed is None  # nobody asked for it to be kept
    keeper = ChatKeeper(ChatStore(load_settings().home), enabled=kept, quiet=quiet)
    if resumed is not None:
        keeper.resume(resumed)
        for problem in settings.restore(resumed.chat.settings):
            print_note(f"({problem})")
    if question is None:
        chat(target, settings, keeper, system=system, resumed=resumed, tools=tools)
    else:
        answer_once(target, question, settings, keeper, as_json=as_json, resumed=resumed, tools=tools)


def _model_and_prompt(
    model: str,
    prompt: str | None,
    resumed: Resumed | None,
    *,
    bundle: Path | None,
    bmodel: Path | None,
    prompt_ids: str,
) -> tuple[str, str | None]:
    """What the arguments are: where the model is known without being named, the one of them is the prompt."""
    from tpudeploy.launch.usage import no_model_named

    if prompt is not None or _is_model(model):
        return model, prompt
    if resumed is not None and bundle is None and bmodel is None:
        return resumed.chat.model, model or None
    if bundle is not None:
        return "", model or None
    if bmodel is not None and model and not prompt_ids:
        raise no_model_named(model)
    return model, prompt


def _last(context: typer.Context, home: Path) -> Resumed:
    """The conversation to go on with; what was said on the command line or in the environment wins over it."""
    from tpudeploy.cli.chat_keeper import resume_last
    from tpudeploy.cli.chat_store import ChatStore

    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}
    return resume_last(ChatStore(home), given)


def _is_model(text: str) -> bool:
    from tpudeploy.plugins import registry

    return text.partition(":")[0] in registry().models
