"""The hub's two ways, down and up, and one sentence for everything that can go wrong on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from promptris.errors import InputError
from promptris.modeling.card import CARD_FILE
from promptris.modeling.saved_towers import CONFIG_FILE, WEIGHTS_FILE

MODEL_FILES = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    "preprocessor_config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    CARD_FILE,
)
"""Patterns of the files that a model folder is made of; nothing else is fetched or sent."""

_LOG_IN = "log in with  hf auth login , or set HF_TOKEN"


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name; whether there is such a model is for the hub to say."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def download_model(name: str, revision: str | None) -> Path:
    """The folder in the hub's cache that holds a model, fetched if needed.

    Where the hub cannot be reached (or HF_HUB_OFFLINE is set), what was fetched before is used.

    Args:
        name: owner/name.
        revision: branch, tag or commit; None means the main branch.

    Raises:
        InputError: when there is no such model or revision, or the hub cannot be reached and nothing is here.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    neither = f"there is neither a folder nor a reachable hub model {name}"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES)))
    except HFValidationError as error:
        raise InputError(f"{neither}: {_first_line(error)}") from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"{name} has no revision {revision!r} on the hub: name a branch, tag or commit"
        ) from error
    except GatedRepoError as error:
        raise InputError(
            f"{name} asks to be applied for: accept its terms on its page, then {_LOG_IN}"
        ) from error
    except LocalEntryNotFoundError as error:
        at = "" if revision is None else f" at revision {revision}"
        raise InputError(
            f"{neither}{at}: the hub cannot be reached, and it was not fetched before; on a machine with a "
            f"connection run  hf download {name} --local-dir DIR , copy DIR here and give its path"
        ) from error
    except HfHubHTTPError as error:
        raise InputError(f"{neither}: it does not exist, or is private: then {_LOG_IN}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{neither}: {_first_line(error)}") from error


def upload(
    files: Mapping[str, Path | bytes], repo_id: str, private: bool, token: str | None, message: str
) -> str:
    """Send files to a model repository in one commit, and make the repository if there is none.

    Args:
        files: content by name.
        repo_id: owner/name.
        private: the repository must be private; one that exists and is public is an error.
        token: None takes the one that the user has logged in with.
        message: of the commit.

    Returns:
        the address of the model's page.

    Raises:
        InputError: when the name is not valid, there is no token, it does not suffice, or the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            f"{repo_id!r} is not a name for the hub: give owner/name, such as me/my-model"
        ) from error
    if token is None and get_token() is None:
        raise InputError(f"{repo_id} cannot be written without a token of the hub: {_LOG_IN}")
    api = HfApi(token=token, library_name="promptris")
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        # None leaves what is there, and the hub's own rule for what is new, as they are.
        page = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(page.repo_id).private:
            raise InputError(
                f"{page.repo_id} exists and is public, so nothing was sent: make it private on its page, or choose "
                "another name"
            )
        api.create_commit(page.repo_id, operations, commit_message=message)
    except InputError:
        raise
    except Exception as error:  # whatever the hub, its client or the network raised
        raise InputError(_sentence(error, repo_id)) from error
    return str(page)


def _sentence(error: Exception, repo_id: str) -> str:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo_id} cannot be written while HF_HUB_OFFLINE is set: unset it"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return f"the hub does not accept this token for {repo_id}: {_LOG_IN}"
        if status == 403:
            return (
                f"this token may not write to {repo_id}: it needs the role write, and {repo_id.split('/')[0]} must "
                "be you or an organisation of yours"
            )
        said = error.server_message or _first_line(error)
        return f"the hub refused {repo_id} (status {status}): {' '.join(said.split())}"
    if isinstance(error, ValueError):
        return f"{repo_id} was not written: {' '.join(str(error).split())}"
    return f"{repo_id} was not written, as the hub cannot be reached ({type(error).__name__}): {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return re.sub(r"\s+", " ", lines[0])[:300].rstrip(".") if lines else type(error).__name__
