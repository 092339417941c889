"""The verb that answers requests: serve."""

import ipaddress
import pathlib

import click

from nextstep_jax.cli_shared import CHECKPOINT, DTYPE, Command, cache_folder, load_pipeline
from nextstep_jax.errors import InputError


@click.command(cls=Command)
@CHECKPOINT
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; others than this machine's need --token."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for any that is free.")
@click.option("--token", envvar="NEXTSTEP_JAX_TOKEN", help="What clients must send as Authorization: Bearer TOKEN.")
@DTYPE
def serve(checkpoint: pathlib.Path | None, host: str, port: int, token: str | None, dtype: str | None):
    """Answer requests, and show a page to draw on.

    OpenAI's images and chat routes, and at / a page for the browser. Needs the extra "serve".
    """
    local = _is_local(host)
    if token is not None and not (token.strip() and token.isascii() and token.isprintable()):
        raise InputError("--token must be printable ASCII text and not be empty")
    if not local and token is None:
        raise InputError(f"--host {host} can be reached by others: give a --token, too")
    import uvicorn

    from nextstep_jax.serve.app import LOOPBACK, create_app
    from nextstep_jax.serve.preview import preview_weights
    from nextstep_jax.serve.worker import Worker

    pipeline = load_pipeline(checkpoint, dtype)
    preview = preview_weights(pipeline, cache_folder()) if pipeline.tokenizer_config is not None else None
    app = create_app(Worker(pipeline, preview), token, LOOPBACK if local else ("*",))
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", limit_concurrency=512, timeout_graceful_shutdown=5, server_header=False
    )
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"http://{shown}:{socket.getsockname()[1]}/  ({pipeline.name}; Ctrl-C ends)")
    server.run(sockets=[socket])


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
