"""``tpudeploy serve``: answer OpenAI's clients."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tpudeploy.cli import generation_options as how
from tpudeploy.cli import net_options, options
from tpudeploy.errors import UsageError


class Engine(str, Enum):
    """Where replicas run."""

    PROCESS = "process"
    RAY = "ray"


def serve(
    model: options.OptionalModel = "",
    quant: options.Quant = "",
    backend: options.Backend = "auto",
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="ID,...",
            envvar="TPUDEPLOY_SERVE_DEVICE",
            show_default=False,
            help="Device ids, one a chip of the bundle; given again, another replica of the model on other devices.",
        ),
    ] = None,
    replicas: Annotated[
        int,
        typer.Option(
            "--replicas",
            metavar="N",
            envvar="TPUDEPLOY_REPLICAS",
            min=1,
            help="Load the model N times, where --device does not say it; each answers one request at a time.",
        ),
    ] = 1,
    engine: Annotated[
        Engine,
        typer.Option(
            "--engine",
            envvar="TPUDEPLOY_ENGINE",
            help="Where replicas run: in this process, or as Ray Serve deployments, on every machine of a cluster.",
        ),
    ] = Engine.PROCESS,
    ray_address: Annotated[
        str,
        typer.Option(
            "--ray-address",
            metavar="ADDRESS",
            envvar="TPUDEPLOY_RAY_ADDRESS",
            show_default=False,
            help="With --engine ray: a Ray cluster that is there, for example 10.0.0.1:6379; without it one is started "
            "on this machine.",
        ),
    ] = "",
    split: net_options.SplitBy = "tensor",
    model_dir: options.ModelDir = None,
    bundle: options.Bundle = None,
    bmodel: options.Bmodel = None,
    tokenizer_dir: options.TokenizerDir = None,
    mask: options.Mask = "",
    seq_length: Annotated[
        int | None,
        typer.Option(
            "--seq-length",
            metavar="TOKENS",
            envvar="TPUDEPLOY_SEQ_LENGTH",
            min=1,
            show_default=False,
            help="Tokens of prompt and answer; without it 2048, or what the model was made for where that is less.",
        ),
    ] = None,
    draft: how.Draft = "prompt-lookup",
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", envvar="TPUDEPLOY_HOST", help="The address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option("--port", metavar="N", envvar="TPUDEPLOY_PORT", min=0, max=65535, help="Its port; 0: any."),
    ] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="TPUDEPLOY_API_KEY",
            show_default=False,
            help="Answer only those who send this key, or another one: it may be given again. Other users of this "
            "machine can read a command line: better the variable, or --api-key-file.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", metavar="FILE", envvar="TPUDEPLOY_API_KEY_FILE", help="Keys, one a line."),
    ] = None,
    insecure_no_key: Annotated[
        bool,
        typer.Option(
            "--insecure-no-key",
            envvar="TPUDEPLOY_INSECURE_NO_KEY",
            show_default=False,
            help="Answer everybody who can reach an address that other machines can reach.",
        ),
    ] = False,
    served_name: Annotated[
        list[str] | None,
        typer.Option(
            "--served-name",
            metavar="NAME",
            envvar="TPUDEPLOY_SERVED_NAME",
            show_default=False,
            help="What clients may call the model, beside its own name; may be given again.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            metavar="ORIGIN",
            envvar="TPUDEPLOY_CORS_ORIGIN",
            show_default=False,
            help="Let pages of this origin ask, for example https://chat.example.com; may be given again. '*': of any.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            envvar="TPUDEPLOY_ALLOW_HOST",
            show_default=False,
            help="A name under which a local server may be asked for beside localhost; may be given again.",
        ),
    ] = None,
    max_queue: Annotated[
        int,
        typer.Option(
            "--max-queue", metavar="N", envvar="TPUDEPLOY_MAX_QUEUE", min=0, help="Requests that may wait; more: 429."
        ),
    ] = 64,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            envvar="TPUDEPLOY_TIMEOUT",
            min=0.001,
            help="What a request may take, waiting included.",
        ),
    ] = 600.0,
    max_body: Annotated[
        int,
        typer.Option(
            "--max-body", metavar="BYTES", envvar="TPUDEPLOY_MAX_BODY", min=1024, help="Size of a request at most."
        ),
    ] = 4 << 20,
    session_memory: Annotated[
        int | None,
        typer.Option(
            "--session-memory",
            metavar="BYTES",
            envvar="TPUDEPLOY_SESSION_MEMORY",
            min=0,
            show_default=False,
            help="Host memory for conversations that the device's cache has no room for; without it a tenth of what is "
            "free, at most 1 GB; 0 keeps none.",
        ),
    ] = None,
    shutdown_grace: Annotated[
        float,
        typer.Option(
            "--shutdown-grace",
            metavar="SECONDS",
            envvar="TPUDEPLOY_SHUTDOWN_GRACE",
            min=0,
            help="How long answers may still take after SIGTERM or Ctrl-C; a second one ends at once.",
        ),
    ] = 30.0,
    log_prompts: Annotated[
        bool,
        typer.Option(
            "--log-prompts",
            envvar="TPUDEPLOY_LOG_PROMPTS",
            show_default=False,
            help="Write prompts and answers to the log.",
        ),
    ] = False,
    yes: options.Yes = False,
    hub: options.Hub = "",
    force: options.Force = False,
    verify_files: options.VerifyFiles = False,
    offline: options.Offline = False,
    toolchain: options.Toolchain = None,
) -> None:
    """Serve a model to OpenAI's clients: chat and plain completions, streamed or whole, one after the other.

    Stops on SIGTERM or Ctrl-C. Without a key it answers this machine only.
    """
    from tpudeploy.cli import serving
    from tpudeploy.launch import LaunchRequest
    from tpudeploy.launch.generation import find_drafter
    from tpudeploy.plugins import registry

    serving.require_packages()
    check_engine(engine, device or (), ray_address)
    from tpudeploy.server.settings import Limits, ServerSettings

    keys = serving.read_keys(api_key or (), api_key_file)
    serving.check_exposure(host, keys, insecure=insecure_no_key)
    settings = ServerSettings(
        api_keys=keys,
        names=tuple(served_name or ()),
        cors_origins=tuple(cors_origin or ()),
        allowed_hosts=serving.allowed_hosts(host, keys, tuple(allow_host or ())),
        log_prompts=log_prompts,
        limits=Limits(queue=max_queue, timeout_s=timeout, body_bytes=max_body),
        drafter=find_drafter(draft, registry()),
    )
    request = LaunchRequest(
        model=model,
        bundle=bundle,
        bmodel=bmodel,
        tokenizer_dir=tokenizer_dir,
        mask=mask,
        model_dir=model_dir,
        quant=quant,
        backend=backend,
        split=net_options.parse_split(split),
        seq_length=seq_length,
        force=force,
        verify_files=verify_files,
    )
    if engine is Engine.RAY:
        from tpudeploy.cli.fleet import FleetServing

        fleet = FleetServing(request, replicas, ray_address, settings, shutdown_grace, session_memory)
        fleet.run(host, port, yes=yes, hub=hub)
        return
    devices = serving.device_groups(device or (), replicas)
    serving.Serving(request, devices, settings, shutdown_grace, session_memory).run(host, port, yes=yes, hub=hub)


def check_engine(engine: Engine, devices: Sequence[str], ray_address: str) -> None:
    """:raises TpuDeployError: options of another engine, or one that is not installed."""
    if engine is Engine.RAY:
        from tpudeploy.cli.fleet import check_devices, require_ray

        require_ray()
        check_devices(devices)
    elif ray_address:
        raise UsageError("--ray-address is for --engine ray.")
