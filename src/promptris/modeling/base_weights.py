"""The frozen base models, CLIP and SAM, from wherever people keep them, without running pickled code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from promptris.builtin_models import builtin_folder
from promptris.errors import InputError, WeightsError
from promptris.modeling import meta_sam, openai_clip
from promptris.modeling.content_hash import content_hash
from promptris.modeling.saved_towers import read_tower, saved_with_towers
from promptris.modeling.weight_files import first_sentence, read_tensors, refuse_lfs_pointer

if TYPE_CHECKING:
    from transformers import CLIPModel, SamModel

Model = TypeVar("Model", bound=nn.Module)

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_FILE_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class BaseModel(Generic[Model]):
    """A loaded base model and where it came from.

    Attributes:
        module: the transformers module, float32, on the CPU, in evaluation mode.
        source: the folder, file or hub id, as it was given.
        format: "transformers" (folder or hub id), "openai" or "meta" (original file).
        sha256: `content_hash` of the module; the same for the same weights in any format.
    """

    module: Model
    source: str
    format: Literal["transformers", "openai", "meta"]
    sha256: str


@dataclass(frozen=True)
class _Family:
    """What CLIP and SAM differ in, as far as loading goes."""

    title: str
    model_type: str
    model_class: str
    original: Literal["openai", "meta"]
    wanted: str
    hub_example: str
    file_example: str
    infer_config: Callable[[Mapping[str, Tensor], str], Any]
    key_table: Callable[[Any], dict[str, tuple[str, ...]]]
    transposed: frozenset[str]
    bookkeeping: re.Pattern[str]


_CLIP = _Family(
    title="CLIP",
    model_type="clip",
    model_class="CLIPModel",
    original="openai",
    wanted="a CLIP in OpenAI's format with a ViT image tower",
    hub_example="openai/clip-vit-base-patch16",
    file_example="ViT-B-16.pt",
    infer_config=openai_clip.infer_config,
    key_table=openai_clip.key_table,
    transposed=openai_clip.TRANSPOSED,
    bookkeeping=openai_clip.BOOKKEEPING,
)
_SAM = _Family(
    title="SAM",
    model_type="sam",
    model_class="SamModel",
    original="meta",
    wanted="a SAM in Meta's format",
    hub_example="facebook/sam-vit-base",
    file_example="sam_vit_b_01ec64.pth",
    infer_config=meta_sam.infer_config,
    key_table=meta_sam.key_table,
    transposed=meta_sam.TRANSPOSED,
    bookkeeping=meta_sam.BOOKKEEPING,
)

# What a file holds, told by one telling name; the first match counts.
_KINDS = (
    (re.compile(r"visual\.layer1\..+"), "openai-resnet", "a CLIP with a ResNet image tower"),
    (re.compile(r"visual\.transformer\.resblocks\..+"), "openai", "a CLIP in OpenAI's format"),
    (re.compile(r"image_encoder\.blocks\..+"), "meta", "a SAM in Meta's format"),
    (re.compile(r"image_encoder\.trunk\..+"), "sam2", "a SAM 2"),
    (re.compile(r"vision_model\.encoder\..+"), "transformers", "a CLIP in transformers' format"),
    (re.compile(r"vision_encoder\.layers\..+"), "transformers", "a SAM in transformers' format"),
)


def load_clip(source: str | Path, *, offline: bool = False) -> BaseModel[CLIPModel]:
    """Loads a CLIP with a ViT image tower.

    Args:
        source: one of
            - a transformers folder: config.json and model.safetensors, or pytorch_model.bin, read for tensors
              only;
            - a hub id such as ``openai/clip-vit-base-patch16``, through the hub's cache;
            - a built-in name (``tiny``) or a model folder of this package that holds its towers, for the CLIP in it;
            - OpenAI's original ``ViT-B-16.pt`` (B/32, B/16, L/14, L/14@336), a TorchScript archive whose code
              is not run, or the same state dict saved plainly (.pt, .pth, .safetensors). Such files are taken
              to be OpenAI's: quick GELU and heads of 64 channels, which no tensor tells.
        offline: use only what is on this machine.

    Raises:
        InputError: there is no such source, or it cannot be read as weights.
        WeightsError: it holds another architecture, or tensors are missing, unexpected or of another shape.
    """
    return _load(source, _CLIP, offline)


def load_sam(source: str | Path, *, offline: bool = False) -> BaseModel[SamModel]:
    """Loads a SAM (ViT-B, L or H; other sizes of the same build too).

    Args:
        source: a transformers folder, a hub id such as ``facebook/sam-vit-base``, Meta's original
            ``sam_vit_b_01ec64.pth`` (read for tensors only), or a model of this package as in `load_clip`.
        offline: use only what is on this machine.

    Raises:
        InputError: there is no such source, or it cannot be read as weights.
        WeightsError: it holds another architecture, or tensors are missing, unexpected or of another shape.
    """
    return _load(source, _SAM, offline)


def locate_source(source: str | Path, example: str) -> tuple[Literal["folder", "file", "hub"], Path]:
    """Tells a folder, a file and a hub id apart; the path is the local one (or the id as a path).

    Args:
        source: what the user gave.
        example: what to suggest when it is nothing at all.

    Raises:
        InputError: it is nothing at all.
    """
    text = str(source).strip()
    if builtin := builtin_folder(text):
        return "folder", builtin
    if text:
        path = Path(text).expanduser()
        try:
            if path.is_dir():
                return "folder", path
            if path.is_file():
                return "file", path
        except (OSError, ValueError) as error:
            raise InputError(f"{text[:200]!r} is not a usable path ({error}): {example}") from error
        if _HUB_ID.fullmatch(text) and not text.lower().endswith(_FILE_SUFFIXES):
            return "hub", path
    raise InputError(f"{text or 'the empty name'} is no folder or file here and no hub id: {example}")


def _load(source: str | Path, family: _Family, offline: bool) -> BaseModel[Any]:
    example = (
        f"give {family.title} as a folder, a file ({family.file_example}) or a hub id ({family.hub_example})"
    )
    place, path = locate_source(source, example)
    if place == "file":
        module = _load_original(path, family)
    elif place == "folder" and saved_with_towers(path):
        module = read_tower(path, family.model_type)
    else:
        if place == "folder":
            _check_folder(path, family)
        module = _load_transformers(str(path), family, offline=offline, hub=place == "hub")
    return BaseModel(
        module=module,
        source=str(source),
        format=family.original if place == "file" else "transformers",
        sha256=content_hash(module),
    )


def _check_folder(folder: Path, family: _Family) -> None:
    """Says in one sentence what a folder lacks before transformers does in twenty lines."""
    config = folder / "config.json"
    if not config.is_file():
        originals = sorted(p.name for p in folder.iterdir() if p.suffix in (".pt", ".pth"))
        hint = (
            f"name the file in it ({', '.join(originals[:3])})"
            if originals
            else "put config.json and weights there"
        )
        raise InputError(f"{folder} has no config.json, so it is no transformers folder: {hint}")
    present = [folder / name for name in _WEIGHT_FILES if (folder / name).is_file()]
    if not present:
        raise InputError(
            f"{folder} has a config.json but no weights: put model.safetensors (or pytorch_model.bin) of "
            f"{family.title} beside it"
        )
    for path in (config, *present, *folder.glob("*.safetensors"), *folder.glob("*.bin")):
        refuse_lfs_pointer(path)


def _load_transformers(source: str, family: _Family, *, offline: bool, hub: bool) -> nn.Module:
    """A folder or hub id through transformers, float32, and strictly: nothing missing, nothing left over."""
    import transformers

    model_class = getattr(transformers, family.model_class)
    with quiet_transformers(bars=hub):
        try:
            config, _ = model_class.config_class.get_config_dict(source, local_files_only=offline)
        except Exception as error:  # whatever the hub client, the network or the JSON raised
            _refuse(source, family, error, fetch=hub, offline=offline)
        found = config.get("model_type") if isinstance(config, dict) else None
        if found != family.model_type:
            raise WeightsError(
                f"{source} holds a model of type {found!r}, but {family.title} (type {family.model_type!r}) "
                f"was asked for: give for example {family.hub_example}"
            )
        try:
            module, info = model_class.from_pretrained(
                source,
                dtype=torch.float32,
                weights_only=True,
                local_files_only=offline,
                ignore_mismatched_sizes=True,  # reported below, in our own words
                output_loading_info=True,
            )
        except Exception as error:  # the same, and damaged or hostile weight files
            _refuse(source, family, error, fetch=hub and isinstance(error, OSError), offline=offline)
    _check_loaded(source, family, info)
    return module


def _load_original(path: Path, family: _Family) -> nn.Module:
    import transformers

    tensors = read_tensors(path)
    kind, description = _recognise(tensors)
    if kind != family.original:
        advice = f"give for example {family.file_example} or {family.hub_example}"
        if kind == "transformers":
            advice = "give the folder that holds the file and its config.json"
        raise WeightsError(f"{path} holds {description}, but {family.wanted} was asked for: {advice}")
    tensors = {name: tensor for name, tensor in tensors.items() if not family.bookkeeping.fullmatch(name)}
    config = family.infer_config(tensors, str(path))
    table = family.key_table(config)
    _check_names(
        str(path), family, missing=table.keys() - tensors.keys(), extra=tensors.keys() - table.keys()
    )

    state: dict[str, Tensor] = {}
    for name, targets in table.items():
        tensor = _as_float32(tensors.pop(name))
        if name in family.transposed:
            tensor = tensor.T
        rows, count = (tensor.shape[0] if tensor.ndim else 0), len(targets)
        if count > 1 and (not rows or rows % count):
            raise WeightsError(f"{path}: {name} has {rows} rows, which do not split into {count} equal parts")
        parts = tensor.split(rows // count) if count > 1 else (tensor,)
        for target, part in zip(targets, parts, strict=True):
            # Cloned, so that no parameter keeps its neighbours' rows or the file's whole storage alive.
            state[target] = part.clone(memory_format=torch.contiguous_format)

    model_class = getattr(transformers, family.model_class)
    with quiet_transformers(bars=False):
        module, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_loaded(str(path), family, info)
    return module


def _recognise(tensors: Iterable[str]) -> tuple[str, str]:
    names = sorted(tensors)
    for pattern, kind, description in _KINDS:
        if any(pattern.fullmatch(name) for name in names):
            return kind, description
    seen = f"its first tensors are {_first_few(names)}" if names else "it has no tensors at all"
    return "unknown", f"neither CLIP nor SAM ({seen})"


def _check_loaded(source: str, family: _Family, info: Mapping[str, Any]) -> None:
    _check_names(source, family, missing=info["missing_keys"], extra=info["unexpected_keys"])
    shapes = sorted(info["mismatched_keys"])
    wrong = [f"{name} is {list(found)} instead of {list(wanted)}" for name, found, wanted in shapes]
    if wrong:
        raise WeightsError(
            f"{source} does not fit its own {family.title} sizes: {len(wrong)} tensor(s) have another shape "
            f"({_first_few(wrong)}); get the original weights again"
        )


def _check_names(source: str, family: _Family, missing: Iterable[str], extra: Iterable[str]) -> None:
    lists = ((sorted(missing), "missing"), (sorted(extra), "unexpected"))
    faults = [f"{len(names)} tensor(s) {word} ({_first_few(names)})" for names, word in lists if names]
    if faults:
        found = " and ".join(faults)
        raise WeightsError(
            f"{source} is not exactly a {family.title}: {found}; get the original weights again"
        )


def _refuse(source: str, family: _Family, error: Exception, *, fetch: bool, offline: bool) -> NoReturn:
    """Turns an error of transformers into our sentence; `fetch`: files are absent rather than unreadable."""
    if not fetch:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"a weight file asks to run {asked[1]}; nothing was run" if asked else first_sentence(error)
        raise InputError(
            f"{source} cannot be read as a transformers folder of {family.title} ({reason}): get it again"
        ) from error
    why = "is not in the local hub cache" if offline else "could not be fetched from the hub"
    raise InputError(
        f"{source} is no local folder or file and {why} ({first_sentence(error)}): on a machine with a connection "
        f"run  hf download {source} --local-dir DIR , copy DIR here and give its path"
    ) from error


def _first_few(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


@contextmanager
def quiet_transformers(*, bars: bool) -> Iterator[None]:
    """Mutes transformers' load report, and its progress bars unless something may be downloading."""
    from transformers.utils import logging

    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()
