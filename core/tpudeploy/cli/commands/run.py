"""``tpudeploy run``: answer a prompt, or hold a conversation."""

from __future__ import annotations

from pathlib import Path

from tpudeploy.cli import generation_options as how
from tpudeploy.cli import net_options, options


def run(
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
    yes: options.Yes = False,
    hub: options.Hub = "",
    force: options.Force = False,
    verify_files: options.VerifyFiles = False,
    offline: options.Offline = False,
    toolchain: options.Toolchain = None,
    as_json: options.Json = False,
) -> None:
    """Answer a prompt, or hold a conversation.

    The answer goes to stdout, everything else to stderr. What has to be compiled first is compiled once and kept.
    """
    from tpudeploy.cli.answer import answer_once
    from tpudeploy.cli.bundles import local_bmodel, local_bundle
    from tpudeploy.cli.chat import chat
    from tpudeploy.cli.question import read_question
    from tpudeploy.cli.weights import ensure_weights
    from tpudeploy.launch import LaunchRequest, open_target
    from tpudeploy.launch.generation import find_drafter, generation_options
    from tpudeploy.launch.targets import check_names
    from tpudeploy.launch.usage import check_usage
    from tpudeploy.plugins import registry
    from tpudeploy.settings import load_settings

    model, prompt = _told_apart(model, prompt, bundle, bmodel, prompt_ids)
    generation = generation_options(
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
        drafter=find_drafter(draft, registry()),
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
    check_usage(request)  # before gigabytes are looked for, unpacked or compared
    if bundle is not None:
        request = request.model_copy(update={"bundle": local_bundle(bundle, backend=backend, force=force)})
    found, settings = registry(), load_settings()
    known = check_names(request, found) if bundle is None else None  # told before stdin is read
    question = read_question(prompt, prompt_ids, system, as_json=as_json)
    if known is not None and bmodel is None:
        ensure_weights(known, settings, model_dir=model_dir, yes=yes, hub=hub)
    target = open_target(request, settings, found)
    if question is None:
        chat(target, generation, system=system)
    else:
        answer_once(target, question, generation, as_json=as_json)


def _told_apart(
    model: str, prompt: str | None, bundle: Path | None, bmodel: Path | None, prompt_ids: str
) -> tuple[str, str | None]:
    """Model and prompt: a bundle knows its model, so that the one argument beside it is the prompt."""
    if prompt is None and not _is_model(model):
        if bundle is not None:
            return "", model or None
        if bmodel is not None and not prompt_ids and model:
            from tpudeploy.launch.usage import no_model_named

            raise no_model_named(model)
    return model, prompt


def _is_model(text: str) -> bool:
    from tpudeploy.plugins import registry

    return text.partition(":")[0] in registry().models
