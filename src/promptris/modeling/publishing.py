"""Models and model folders on their way to the hub."""

from __future__ import annotations

import warnings
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open

from promptris.builtin_models import builtin_folder
from promptris.errors import InputError, WeightsError
from promptris.modeling.card import CARD_FILE, short_card, with_license
from promptris.modeling.hub import MODEL_FILES, upload
from promptris.modeling.pretrained import from_pretrained, read_config, save_pretrained
from promptris.modeling.prompt_ris import PromptRIS
from promptris.modeling.saved_towers import CONFIG_FILE, WEIGHTS_FILE

_TOWERS = ("clip.", "sam.")
"""How the names of the frozen weights begin."""


def push_model(
    model: PromptRIS,
    repo_id: str,
    full: bool = False,
    private: bool = False,
    token: str | None = None,
    message: str | None = None,
    license: str | None = None,
) -> str:
    """Upload a model; see `PromptRIS.push_to_hub`."""
    with TemporaryDirectory(prefix="promptris-") as folder:
        save_pretrained(model, Path(folder), full, None)
        return push_folder(folder, repo_id, False, private, token, message, license)


def push_folder(
    folder: str | Path,
    repo_id: str,
    full: bool = False,
    private: bool = False,
    token: str | None = None,
    message: str | None = None,
    license: str | None = None,
    clip: str | Path | None = None,
    sam: str | Path | None = None,
) -> str:
    """Upload a model folder as it is, with its card; other files in it stay where they are.

    Args:
        folder: written by `save_pretrained` or by training, or a built-in name.
        repo_id: owner/name.
        full: of a folder without its towers, upload a copy that holds them.
        private: make the repository visible to its owner only.
        token: None takes the one of `hf auth login` or HF_TOKEN.
        message: what changed.
        license: for the card, as the hub spells it; None leaves the card's own.
        clip: where CLIP is now, for `full`.
        sam: the same for SAM.

    Returns:
        the address of the model's page.

    Raises:
        InputError: when the folder is no complete model, or as `promptris.modeling.hub.upload`.
        WeightsError: when the weights are damaged, or for `full` the towers are others.
    """
    path = builtin_folder(folder) or Path(folder)
    if not path.is_dir():
        raise InputError(
            f"there is no model folder {folder}: give one that training or save_pretrained wrote"
        )
    if not (path / CONFIG_FILE).exists() and (path / "model" / CONFIG_FILE).is_file():
        raise InputError(f"{path} is the folder of a run: give its model, {path / 'model'}")
    config = read_config(path)
    if full and not config["full"]:
        return push_model(from_pretrained(path, clip, sam), repo_id, True, private, token, message, license)
    learned = _count_learned(path)
    files: dict[str, Path | bytes] = {
        file.name: file
        for file in sorted(path.iterdir())
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in MODEL_FILES)
    }
    if not any(name.startswith("tokenizer") or name == "vocab.json" for name in files):
        raise InputError(f"{path} has no tokenizer: it is not a complete promptris model")
    if CARD_FILE not in files:
        files[CARD_FILE] = short_card(config, learned).encode()
    if license is not None:
        files[CARD_FILE] = with_license(_text(files[CARD_FILE]), license).encode()
    _warn_of_local_towers(config)
    return upload(files, repo_id, private, token, message or "Upload a promptris model")


def _count_learned(folder: Path) -> int:
    """Learned parameters in a folder's weights, of which the header is read."""
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise InputError(f"{folder} has no {WEIGHTS_FILE}: it is not a complete promptris model")
    count = 0
    try:
        with safe_open(weights, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if not name.startswith(_TOWERS):
                    size = 1
                    for side in file.get_slice(name).get_shape():
                        size *= side
                    count += size
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{weights} is damaged or no safetensors file: {error}") from error
    return count


def _warn_of_local_towers(config: dict[str, Any]) -> None:
    """Whoever loads a folder without towers needs to find them; a path of this machine does not help."""
    sources = {name: source["source"] for name, source in config["sources"].items()}
    local = [name for name, source in sources.items() if Path(source).expanduser().exists()]
    if local and not config["full"]:
        towers = " and ".join(name.upper() for name in local)
        warnings.warn(
            f"{towers} will be looked for at {', '.join(sources[name] for name in local)}, which is on this machine: "
            f"others must give copies of their own (load(..., {'=..., '.join(local)}=...)), unless you push it with "
            "its towers (full)",
            stacklevel=3,
        )


def _text(content: Path | bytes) -> str:
    return (content if isinstance(content, bytes) else content.read_bytes()).decode("utf-8")
