"""OpenAI's original CLIP files: read without running them, and renamed to what transformers calls them."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from promptris.errors import InputError, WeightsError

if TYPE_CHECKING:
    from transformers import CLIPConfig

# The archives carry these beside the weights; they repeat what the shapes say.
BOOKKEEPING = re.compile(r"input_resolution|context_length|vocab_size|(.*\.)?attn_mask")

# Stored as [width, embedding]; a torch Linear keeps [embedding, width].
TRANSPOSED = frozenset({"text_projection", "visual.proj"})

_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

_STORAGE_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}

# Every global that TorchScript's own writer puts in an archive, apart from the classes under __torch__.
_KNOWN_GLOBALS = {
    ("collections", "OrderedDict"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor_v2"),
    *(("torch", storage) for storage in _STORAGE_DTYPES),
    *(("torch.jit._pickle", f"build_{kind}list") for kind in ("int", "double", "bool", "tensor")),
    ("torch.jit._pickle", "restore_type_tag"),
}


def infer_config(tensors: Mapping[str, Tensor], name: str) -> CLIPConfig:
    """The transformers config that OpenAI's tensors imply.

    OpenAI's models fix what shapes do not tell: heads of 64 channels, quick GELU, and [SOS] and [EOS] as the
    last two ids of the vocabulary (49406 and 49407).

    Args:
        tensors: OpenAI's names to tensors; only shapes are read, so meta tensors do.
        name: the file's name, for errors.

    Raises:
        WeightsError: tensors that the sizes are read from are missing, or their shapes contradict each other.
    """
    from transformers import CLIPConfig

    def shape(key: str, dims: int) -> torch.Size:
        return read_shape(tensors, key, dims, f"{name} is not a complete CLIP as OpenAI released it")

    def tower(prefix: str, width: int) -> dict[str, int]:
        if width % max(1, width // 64):
            raise WeightsError(f"{name}: a tower of width {width} does not split into heads of 64 channels")
        return {
            "hidden_size": width,
            "num_hidden_layers": count_layers(tensors, f"{prefix}transformer.resblocks."),
            "num_attention_heads": max(1, width // 64),
            "intermediate_size": shape(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        }

    vision_width, channels, patch, _ = shape("visual.conv1.weight", 4)
    positions = shape("visual.positional_embedding", 2)[0]
    grid = round((positions - 1) ** 0.5)
    if grid * grid + 1 != positions:
        raise WeightsError(f"{name}: {positions} image positions are not a square grid and one class token")
    context, text_width = shape("positional_embedding", 2)
    vocab = shape("token_embedding.weight", 2)[0]
    embedding = shape("text_projection", 2)[1]
    shape("visual.proj", 2)
    return CLIPConfig(
        text_config={
            **tower("", text_width),
            "vocab_size": vocab,
            "max_position_embeddings": context,
            "projection_dim": embedding,
            "hidden_act": "quick_gelu",
            "bos_token_id": vocab - 2,
            "eos_token_id": vocab - 1,
        },
        vision_config={
            **tower("visual.", vision_width),
            "num_channels": channels,
            "image_size": grid * patch,
            "patch_size": patch,
            "projection_dim": embedding,
            "hidden_act": "quick_gelu",
        },
        projection_dim=embedding,
    )


def key_table(config: CLIPConfig) -> dict[str, tuple[str, ...]]:
    """OpenAI's name of every tensor -> transformers' names.

    Three names share a tensor in equal parts along dimension 0: queries, keys, values.
    """
    text, vision = "text_model", "vision_model"
    table: dict[str, tuple[str, ...]] = {
        "logit_scale": ("logit_scale",),
        "token_embedding.weight": (f"{text}.embeddings.token_embedding.weight",),
        "positional_embedding": (f"{text}.embeddings.position_embedding.weight",),
        "text_projection": ("text_projection.weight",),
        "visual.class_embedding": (f"{vision}.embeddings.class_embedding",),
        "visual.conv1.weight": (f"{vision}.embeddings.patch_embedding.weight",),
        "visual.positional_embedding": (f"{vision}.embeddings.position_embedding.weight",),
        "visual.proj": ("visual_projection.weight",),
    }
    for kind in ("weight", "bias"):
        table[f"ln_final.{kind}"] = (f"{text}.final_layer_norm.{kind}",)
        table[f"visual.ln_pre.{kind}"] = (f"{vision}.pre_layrnorm.{kind}",)
        table[f"visual.ln_post.{kind}"] = (f"{vision}.post_layernorm.{kind}",)
    towers = ((text, "", config.text_config), (vision, "visual.", config.vision_config))
    for tower, prefix, tower_config in towers:
        for index in range(tower_config.num_hidden_layers):
            theirs, ours = f"{prefix}transformer.resblocks.{index}", f"{tower}.encoder.layers.{index}"
            for kind in ("weight", "bias"):
                table[f"{theirs}.attn.in_proj_{kind}"] = tuple(
                    f"{ours}.self_attn.{part}_proj.{kind}" for part in "qkv"
                )
                table |= {f"{theirs}.{a}.{kind}": (f"{ours}.{b}.{kind}",) for a, b in _BLOCK.items()}
    return table


def read_shape(tensors: Mapping[str, Tensor], key: str, dims: int, complaint: str) -> torch.Size:
    """The shape of a tensor that must be there, none of its dimensions empty; else a WeightsError."""
    if key not in tensors:
        raise WeightsError(f"{complaint}: {key} is missing; get the original file again")
    shape = tensors[key].shape
    if len(shape) != dims or 0 in shape:
        raise WeightsError(f"{complaint}: {key} has shape {list(shape)} instead of {dims} filled dimensions")
    return shape


def count_layers(tensors: Mapping[str, Any], prefix: str) -> int:
    """How many different layer numbers follow `prefix` in the names."""
    return len({key[len(prefix) :].split(".", 1)[0] for key in tensors if key.startswith(prefix)})


def is_script_archive(path: Path) -> bool:
    """Whether the file is a TorchScript archive (a zip with code and constants beside its tensors)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(entry.rpartition("/")[2] == "constants.pkl" for entry in archive.namelist())
    except zipfile.BadZipFile:
        return False


def read_script_archive(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive by their dotted names, on the CPU, in the dtype of the file.

    The archive's code is never touched: the pickled module tree is read into inert records, and the tensors
    are then made from the raw storage files that the records point at.

    Raises:
        InputError: the archive is damaged, or its pickle asks for anything beyond what TorchScript writes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(e for e in archive.namelist() if e.count("/") == 1 and e.endswith("/data.pkl"))[:-8]
            tree = _RecordUnpickler(io.BytesIO(_read_stored(archive, f"{root}data.pkl")), path).load()
            storages: dict[str, Tensor] = {}
            return {
                name: _build_tensor(record, archive, root, storages)
                for name, record in _tensor_records(tree, "", set())
            }
    except InputError:
        raise
    # A hostile or damaged pickle can trip the unpickler in any of these ways; none of them runs anything.
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        NotImplementedError,
        OSError,
        RuntimeError,
        StopIteration,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(
            f"{path} is a damaged TorchScript archive ({type(error).__name__}: {error}): get the file again"
        ) from error


class _Record:
    """What stands in for every object of the pickle: its arguments and state, and no behaviour."""

    __slots__ = ("args", "state")
    path: str = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> _Record:
        record = super().__new__(cls)
        record.args = args
        record.state = None
        return record

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _RecordUnpickler(pickle.Unpickler):
    """Reads a TorchScript pickle with every class and function replaced by a `_Record` type of that name."""

    def __init__(self, stream: Any, source: Path) -> None:
        super().__init__(stream)
        self._source = source

    def find_class(self, module: str, name: str) -> type[_Record]:
        scripted = module == "__torch__" or module.startswith("__torch__.")
        if not scripted and (module, name) not in _KNOWN_GLOBALS:
            refuse_global(self._source, f"{module}.{name}")
        return type("_Record", (_Record,), {"__slots__": (), "path": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        return pid


def refuse_global(path: Path, name: str) -> NoReturn:
    """Says that a pickle wanted more than tensors."""
    raise InputError(
        f"{path} asks to run {name}, which no file of weights needs: nothing was run; get the file from its "
        "authors, or save its weights as a plain state dict"
    )


def _tensor_records(node: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, _Record]]:
    """Walks the module tree, each module once, and gives (dotted name, tensor record)."""
    if not isinstance(node, _Record):
        return
    if node.path == "torch._utils._rebuild_tensor_v2":
        yield prefix, node
    elif node.path.startswith("__torch__") and isinstance(node.state, dict) and id(node) not in seen:
        seen.add(id(node))
        for key, child in node.state.items():
            yield from _tensor_records(child, f"{prefix}.{key}" if prefix else str(key), seen)


def _read_stored(archive: zipfile.ZipFile, entry: str) -> bytes:
    """One entry's bytes, checked against its checksum; nothing can inflate, as torch never compresses."""
    if archive.getinfo(entry).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry} is compressed, which torch never does")
    return archive.read(entry)


def _build_tensor(
    record: _Record, archive: zipfile.ZipFile, root: str, storages: dict[str, Tensor]
) -> Tensor:
    (kind, storage_type, key, _, count), offset, size, stride, *_ = record.args
    if kind != "storage" or not issubclass(storage_type, _Record):
        raise ValueError("a tensor does not point at a storage")
    if key not in storages:
        dtype = _STORAGE_DTYPES[storage_type.path.rpartition(".")[2]]
        raw = bytearray(_read_stored(archive, f"{root}data/{key}"))
        if len(raw) != count * dtype.itemsize:
            raise ValueError(f"storage {key} has not the size its tensor needs")
        storages[key] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    if torch.Size(size).numel() > storages[key].numel():
        raise ValueError(f"storage {key} is smaller than its tensor")
    return storages[key].as_strided(size, stride, offset)
