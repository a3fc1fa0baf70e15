"""The folder of an export: graphs, tokenizer, and a manifest that tells how to use them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptris.config import PROMPT_NAMES
from promptris.errors import InputError
from promptris.export.graphs import DIMENSIONS, Graph
from promptris.modeling.pretrained import full_state
from promptris.modeling.prompt_ris import PromptRIS
from promptris.processing import CLIP_MEAN, CLIP_STD, SAM_MEAN, SAM_STD

MANIFEST = "export.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Written:
    """A graph that was written and checked.

    Attributes:
        graph: the graph.
        file: its file's name in the folder.
        difference: the largest from the model, as a share of an output's largest value.
    """

    graph: Graph
    file: str
    difference: float


def check_new(out: Path) -> None:
    """InputError unless `out` can become a new folder."""
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file: name a new folder for the export")
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out} is not empty: name a new folder for the export")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}") from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when all went well and leaves nothing otherwise.

    Raises:
        InputError: when `out` holds something, or nothing can be written there.
    """
    check_new(out)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_manifest(
    folder: Path, model: PromptRIS, name: str, written: list[Written], runtime: dict[str, Any]
) -> None:
    """Copy the tokenizer beside the graphs and write `export.json`.

    Args:
        folder: holds the graphs.
        model: what they were made from.
        name: of the model, for people.
        written: the graphs.
        runtime: what they are made for: "format" and its versions.
    """
    from promptris.versions import installed_version

    processor = model.processor()
    tokenizer = processor.tokenizer
    tokenizer.save_pretrained(folder)
    manifest = {
        "format": "promptris-export",
        "format_version": FORMAT_VERSION,
        "promptris": installed_version(),
        "runtime": runtime,
        "model": {
            "name": name,
            "weights_sha256": weights_hash(model),
            "sources": model.sources,
            "refine": model.config.sam_prompts.refine,
        },
        "images": {
            "clip_pixels": _square(processor.clip_size, "bicubic", CLIP_MEAN, CLIP_STD),
            "sam_pixels": _square(processor.sam_size, "bilinear", SAM_MEAN, SAM_STD),
        },
        "text": {
            "tokenizer": "tokenizer.json",
            "context_length": processor.context_length,
            "start": tokenizer.bos_token_id,
            "end": tokenizer.eos_token_id,
            "padding": tokenizer.pad_token_id,
        },
        "prompts": {"order": PROMPT_NAMES, "enabled": model.config.sam_prompts.enabled},
        "mask_size": model.sam.mask_size,
        "dimensions": DIMENSIONS,
        "graphs": {
            one.graph.name: {
                "file": one.file,
                "inputs": [asdict(spec) for spec in one.graph.inputs],
                "outputs": [asdict(spec) for spec in one.graph.outputs],
                "largest_difference": one.difference,
            }
            for one in written
        },
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": _file_hash(path)}
            for path in sorted(folder.iterdir())
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def weights_hash(model: PromptRIS) -> str:
    """A hash of every weight's name, shape and float32 bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(full_state(model).items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _square(side: int, resample: str, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """How an image becomes pixels of [images, 3, side, side]; the graphs take uint8 and normalise themselves."""
    return {
        "size": side,
        "resample": resample,
        "antialias": True,
        "fit": "stretch",
        "dtype": "uint8",
        "normalised_in_graph": {"mean": mean, "std": std},
    }


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
