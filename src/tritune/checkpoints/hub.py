"""The hub, asked once and briefly whether it answers, before a library asks it again and again.

`huggingface_hub` asks seven times, in 23 seconds, for a file that is not in its cache, and transformers for one file
after the other. So a single request goes first, and all that matters is whether there is an answer. Where there is
none, what the hub's cache holds is loaded from its folder alone, and of what it lacks one line says so.

Rejected: the libraries' own settings for time limits and offline use, which hold for the whole process; and taking from
the cache what a hub in reach may have newer.
"""

import os
import queue
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TrituneError, first_line

if TYPE_CHECKING:
    from datasets import DatasetDict

_PATIENCE = 1.5  # seconds
_PATIENCE_VARIABLE = "HF_HUB_ETAG_TIMEOUT"
_CONFIG, _CARD = "config.json", "README.md"


def located(source: str | Path) -> str | Path:
    """Where to load a model and its tokenizer from: `source` itself, or its folder in the cache of a hub out of reach.

    Args:
        source: a local folder or a hub name. The hub is not asked for what can only be a path: with more than one
            separator, or one at an end, with a first part that is a folder here, or with a dot or `~` at its beginning.

    Raises:
        TrituneError: there is no such folder, and no such name on the hub or no way to it.
    """
    if os.path.exists(source):
        return source
    if _is_path(source):
        raise TrituneError(f"{source}: there is no such folder")
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(str(source), _CONFIG)
        reason = why_unreachable(str(source), _CONFIG)
    except HFValidationError:
        raise TrituneError(f"{source}: there is no such folder, and no model on the hub can have this name") from None
    if reason is None:
        return source
    if isinstance(cached, str):
        return Path(cached).parent
    raise TrituneError(
        f"no folder {source} here, and the hub cannot be reached ({reason}); check the name or the connection"
    )


def load_dataset(name: str, subset: str | None = None) -> "DatasetDict":
    """`datasets.load_dataset`, of a hub out of reach from its cache alone.

    Args:
        name: of the data set on the hub.
        subset: of it; None for the only one.

    Raises:
        ConnectionError: the hub cannot be reached, and the cache lacks the data set.
        Exception: whatever else `datasets` fails with.
    """
    import datasets

    reason = why_unreachable(name, _CARD, repo_type="dataset")
    if reason is None:
        return datasets.load_dataset(name, subset)
    from datasets.packaged_modules.cache.cache import Cache

    names = {"dataset_name": name.rpartition("/")[-1], "repo_id": name, "config_name": subset}
    try:
        return Cache(**names, version="auto", hash="auto").as_dataset()
    except ValueError:
        raise ConnectionError(f"the hub cannot be reached: {reason}") from None


def why_unreachable(name: str, file: str, **kind: Any) -> str | None:
    """Why the hub does not answer when it is asked for a file; None when it does, whatever it says of the file.

    Waits a second and a half, or as long as `HF_HUB_ETAG_TIMEOUT` says. Name servers keep no time limit, and a hub has
    several addresses, each with a limit of its own; so a thread waits for them, and this one for the thread.

    Args:
        name, file: of a repository on the hub, and in it.
        **kind: `repo_type` of what is no model.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import get_session

    patience = constants.HF_HUB_ETAG_TIMEOUT if _PATIENCE_VARIABLE in os.environ else _PATIENCE
    url, client = hf_hub_url(name, file, **kind), get_session()
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            status = client.head(url, timeout=patience, follow_redirects=False).status_code
            answers.put(f"it answers with error {status}" if status >= 500 else None)
        except Exception as error:  # the client's own types, or that the environment says offline
            answers.put(first_line(error))

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=patience)
    except queue.Empty:
        return f"no answer within {patience:g} s; {_PATIENCE_VARIABLE} sets how long to wait"


def _is_path(source: str | Path) -> bool:
    text = str(source)
    if isinstance(source, Path) or text.startswith(("/", ".", "~")) or text.endswith("/") or text.count("/") > 1:
        return True
    first, *others = Path(text).parts
    return bool(others) and os.path.exists(first)
