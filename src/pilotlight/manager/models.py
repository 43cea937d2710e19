"""Which model a request means: a folder, a URL or a hub id, resolved once to a folder on disk and an identity.

The identity says which answers to expect: a hub model's commit, or a digest of a folder's content. Nothing here
imports a runtime, and the hub's library only when a hub id is given. It honours HF_HOME, HF_TOKEN and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pilotlight.core.errors import ConfigError, ModelNotFound
from pilotlight.files import identity, place
from pilotlight.manager import origins, sampling
from pilotlight.wire import Context, JobRequest

_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_CODE = ["*.py"]
_COPIES = ["consolidated*", "original/*"]
"""The same weights once more, in a layout that no runtime of ours reads."""
_HUB = "hf://"
_RUNTIME_OF_AUTO = "transformers"


class Resolved(NamedTuple):
    """A model on disk: its absolute folder, what its answers depend on, and what people call it."""

    path: str
    identity: str
    name: str


def resolve_request(request: JobRequest) -> JobRequest:
    """The request with its model's folder, identity and sampling filled in.

    Python and echo contexts are left alone, and so is a context that has its identity. Raises `ModelNotFound`.
    Blocks: it may download. Equal requests give equal results.
    """
    context = resolve_context(request.context)
    if context is request.context or context.model_path is None:
        return request
    operation = sampling.effective(context.model_path, request.operation)
    return msgspec.structs.replace(request, context=context, operation=operation)


def resolve_context(context: Context) -> Context:
    """The context with its model's folder and identity filled in; itself where nothing is to be filled in. As
    `resolve_request`."""
    if context.runtime in {"python", "echo"} or context.identity or context.model_path is None:
        return context
    options = dict(context.options)
    revision = options.pop("revision", None)
    code = bool(options.get("trust_remote_code"))
    path, known_as, name = resolve(context.model_path, revision, with_code=code)
    runtime = _RUNTIME_OF_AUTO if context.runtime == "auto" else context.runtime
    with _readable(context.model_path):
        memory_bytes = context.memory_bytes or weight_bytes(Path(path))
    return Context(
        runtime=runtime,
        name=name,
        identity=known_as,
        model_path=path,
        options=options,
        memory_bytes=memory_bytes,
    )


def resolve(model: str, revision: str | None = None, *, with_code: bool = False) -> Resolved:
    """Find a model. Raises `ModelNotFound`, with the command that would fetch it where one would.

    model: a folder, a URL, or a hub id (also as hf://owner/name) at `revision` (a branch, tag or commit). with_code:
    fetch its Python files too.
    """
    if origins.is_url(model) and not model.startswith(_HUB):
        if revision is not None:
            raise ConfigError(f"--revision {revision} is for hub ids; {origins.shown_as(model)} is a URL")
        folder = origins.fetch(model, place.choose("").path, with_code=with_code)
        with _readable(model):
            _check_folder(folder, origins.shown_as(model))
            return Resolved(str(folder), identity.content_digest(folder), origins.shown_as(model))
    if model.startswith(_HUB):
        model, _, branch = model.removeprefix(_HUB).partition("@")
        revision = revision or branch or None
    with _readable(model):
        folder = Path(os.path.expanduser(model))  # Path's own raises where there is no such user
        if folder.is_dir():
            if revision is not None:
                raise ConfigError(f"--revision {revision} is for hub ids; {model} is a folder")
            folder = folder.resolve()
            _check_folder(folder, model)
            return Resolved(str(folder), identity.content_digest(folder), folder.name)
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ModelNotFound(f"the model folder {model} does not exist")
    path = _snapshot(model, revision, _FILES + (_CODE if with_code else []))
    with _readable(model):
        _check_folder(path, model)
    # A snapshot's folder is named by its commit, whatever branch or tag was asked for.
    return Resolved(str(path), identity.of_commit(model, path.name), model)


@contextlib.contextmanager
def _readable(model: str) -> Generator[None]:
    """What the system says of a model's files becomes a `ModelNotFound`."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or model)
        where = where if len(where) <= 200 else where[:200] + "..."
        raise ModelNotFound(f"the model can't be read: {where}: {error.strerror or error}") from error


def _check_folder(folder: Path, model: str) -> None:
    names = os.listdir(folder)  # unlike `glob`, it says so where it may not look
    if "config.json" not in names:
        raise ModelNotFound(f"{model} is no model: it has no config.json")
    if any(name.endswith(".safetensors") for name in names):
        return
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        message = (
            f"{model} has its weights as pickled .bin files only, which run code when they are loaded: safetensors are "
            f"needed (model.save_pretrained(folder, safe_serialization=True) makes them)"
        )
        raise ModelNotFound(message)
    raise ModelNotFound(f"{model} has no weights that can be used: there is no .safetensors file in {folder}")


# --- size ---------------------------------------------------------------------------------------------------


def weight_bytes(folder: Path) -> int:
    """Size of the weights on disk: a hint of what a live replica needs.

    Where an index names the files, or they are called as transformers calls them, others (a second copy in another
    layout) don't count. Raises OSError for a file that is missing, `ConfigError` for an index that can't be read.
    """
    index = folder / "model.safetensors.index.json"
    try:
        named = set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values())
    except FileNotFoundError:
        names = [path.name for path in folder.glob("*.safetensors")]
        named = {name for name in names if name.startswith("model")} or names
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{index} can't be read: {error}") from error
    return sum((folder / name).stat().st_size for name in named)


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


# --- the hub -------------------------------------------------------------------------------------------------


def _snapshot(model: str, revision: str | None, patterns: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    at = f" --revision {revision}" if revision else ""
    fetch = f"hf download {model}{at}"
    try:
        hub: Any = huggingface_hub
        found = hub.snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=_COPIES)
        return Path(found)
    except errors.GatedRepoError as error:
        message = (
            f"{model} is gated: ask for access at https://huggingface.co/{model}, run `hf auth login` "
            f"(or set HF_TOKEN), then `{fetch}`"
        )
        raise ModelNotFound(message) from error
    except errors.RevisionNotFoundError as error:
        message = f"{model} has no revision {revision}; https://huggingface.co/{model}/commits/main lists them"
        raise ModelNotFound(message) from error
    except errors.RepositoryNotFoundError as error:
        message = (
            f"{model} is neither a folder here nor a model on the hub; if it is private, run `hf auth login` "
            f"(or set HF_TOKEN), then `{fetch}`"
        )
        raise ModelNotFound(message) from error
    except errors.HFValidationError as error:
        raise ModelNotFound(f"{model} is neither a folder here nor a hub id (such as owner/name)") from error
    except errors.LocalEntryNotFoundError as error:
        message = f"{model} is not in the cache ({_cache()}) and {_why_offline()}; where there is a network: `{fetch}`"
        raise ModelNotFound(message) from error
    except (_network_error(errors.HfHubHTTPError), OSError, RuntimeError) as error:  # RuntimeError: hf_xet's own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelNotFound(f"{model} can't be fetched ({reason}); try `{fetch}`") from error


def _network_error(of_hub: type[Exception]) -> type[Exception]:
    """What the HTTP library under the hub's own raises when a download breaks off: httpx's or httpx2's, by version."""
    return next((base for base in of_hub.__mro__ if base.__name__ == "HTTPError"), of_hub)


def _cache() -> Any:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _why_offline() -> str:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return "HF_HUB_OFFLINE is set" if offline else "the hub can't be reached"
