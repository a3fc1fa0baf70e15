"""CLIP from every format gives the same model, and every bad file one clear sentence."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from promptris.errors import InputError, PromptRISError, WeightsError
from promptris.modeling import openai_clip
from promptris.modeling.base_weights import load_clip
from promptris.modeling.content_hash import content_hash

VOCAB, CONTEXT = 120, 12


class _Block(nn.Module):
    """One residual block with the parameter names of OpenAI's files."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, max(1, width // 64))
        self.ln_1 = nn.LayerNorm(width)
        hidden = OrderedDict(c_fc=nn.Linear(width, 4 * width), c_proj=nn.Linear(4 * width, width))
        self.mlp = nn.Sequential(hidden)
        self.ln_2 = nn.LayerNorm(width)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        mask = torch.full((len(x), len(x)), -torch.inf).triu(1) if self.causal else None
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(y * torch.sigmoid(1.702 * y))


class _Tower(nn.Module):
    def __init__(self, width: int, layers: int, causal: bool) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*[_Block(width, causal) for _ in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x.transpose(0, 1)).transpose(0, 1)


class _Visual(nn.Module):
    def __init__(self, width: int, layers: int, patch: int, size: int, embedding: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((size // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = _Tower(width, layers, causal=False)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embedding))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        return x, self.ln_post(x[:, 0]) @ self.proj


class OpenAIClip(nn.Module):
    """CLIP as its paper describes it, written with the parameter names of OpenAI's files."""

    def __init__(
        self, width=128, layers=3, patch=8, size=32, text=64, text_layers=2, embedding=48, **kw
    ) -> None:
        super().__init__()
        vocab, context = kw.get("vocab", VOCAB), kw.get("context", CONTEXT)
        self.visual = _Visual(width, layers, patch, size, embedding)
        self.transformer = _Tower(text, text_layers, causal=True)
        self.token_embedding = nn.Embedding(vocab, text)
        self.positional_embedding = nn.Parameter(torch.empty(context, text))
        self.ln_final = nn.LayerNorm(text)
        self.text_projection = nn.Parameter(torch.empty(text, embedding))
        self.logit_scale = nn.Parameter(torch.empty([]))
        # The real archives carry these three as tensors too.
        for name, value in (("input_resolution", size), ("context_length", context), ("vocab_size", vocab)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, image: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        image_hidden, image_features = self.visual(image)
        hidden = self.ln_final(self.transformer(self.token_embedding(ids) + self.positional_embedding))
        features = hidden[torch.arange(len(ids)), ids.argmax(1)] @ self.text_projection
        return image_hidden, image_features, hidden, features


def make_inputs() -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[VOCAB - 2, 5, 9, 7, VOCAB - 1] + [0] * 7, [VOCAB - 2, *range(10), VOCAB - 1]])
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), ids


def save_script(module: nn.Module, path: Path) -> None:
    """A TorchScript archive in half precision, as OpenAI released its models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, make_inputs()).half().save(str(path))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One set of random weights in all formats, and what the reference module makes of the inputs."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    module = OpenAIClip().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            shift = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            # Rounded to half precision, so that the archive loses nothing.
            parameter.copy_((shift + 0.1 * torch.randn_like(parameter)).half())
        outputs = module(*make_inputs())
    state = {k: v.clone() for k, v in module.state_dict().items()}
    torch.save(state, folder / "plain.pth")
    save_script(module, folder / "ViT-tiny.pt")
    loaded = load_clip(folder / "ViT-tiny.pt")
    loaded.module.save_pretrained(folder / "safe")
    (folder / "bin").mkdir()
    shutil.copy(folder / "safe" / "config.json", folder / "bin")
    torch.save(loaded.module.state_dict(), folder / "bin" / "pytorch_model.bin")
    return SimpleNamespace(folder=folder, state=state, outputs=outputs, loaded=loaded)


def one_sentence(error: pytest.ExceptionInfo[PromptRISError], *parts: object) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text, text


def rewrite(source: Path, target: Path, changes: dict[str, bytes]) -> None:
    """Copies a zip with some entries replaced; names are those after the root folder."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, changes.get(entry.partition("/")[2], old.read(entry)))


class Evil:
    """Unpickling this leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


# ---------------------------------------------------------------- the same model from every format


def test_script_archive_computes_what_the_original_computes(world):
    image, ids = make_inputs()
    model = world.loaded.module
    with torch.no_grad():
        vision = model.vision_model(image)
        text = model.text_model(ids)
        features = model.get_image_features(image).pooler_output, model.get_text_features(ids).pooler_output
    expected_hidden, expected_image, expected_text_hidden, expected_text = world.outputs
    torch.testing.assert_close(vision.last_hidden_state, expected_hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text.last_hidden_state, expected_text_hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features[0], expected_image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features[1], expected_text, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["safe", "bin", "plain.pth"])
def test_every_format_gives_the_same_bits(world, name):
    other = load_clip(world.folder / name)
    expected = world.loaded.module.state_dict()
    assert other.module.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in other.module.state_dict().items())
    assert other.sha256 == world.loaded.sha256
    assert other.format == ("openai" if name == "plain.pth" else "transformers")
    image, ids = make_inputs()
    with torch.no_grad():
        a, b = (m(input_ids=ids, pixel_values=image) for m in (other.module, world.loaded.module))
    assert torch.equal(a.logits_per_image, b.logits_per_image)


def test_loaded_model_is_float32_in_eval_mode_and_knows_its_source(world):
    loaded = world.loaded
    assert (loaded.source, loaded.format) == (str(world.folder / "ViT-tiny.pt"), "openai")
    assert not loaded.module.training
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert loaded.module.config.text_config.eos_token_id == VOCAB - 1
    assert loaded.module.config.vision_config.hidden_act == "quick_gelu"


def test_half_precision_folder_is_loaded_as_float32(world, tmp_path):
    load_clip(world.folder / "safe").module.half().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    loaded = load_clip(tmp_path)
    assert loaded.module.logit_scale.dtype == torch.float32
    assert loaded.sha256 == world.loaded.sha256


def test_training_checkpoint_with_prefixes_and_safetensors_are_read(world, tmp_path):
    from safetensors.torch import save_file

    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in world.state.items()}}
    torch.save(wrapped, tmp_path / "wrapped.pt")
    torch.save(world.state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(world.state, tmp_path / "weights.safetensors")
    for name in ("wrapped.pt", "legacy.pt", "weights.safetensors"):
        assert load_clip(tmp_path / name).sha256 == world.loaded.sha256


def test_position_ids_of_old_folders_are_no_fault(world, tmp_path):
    shutil.copy(world.folder / "safe" / "config.json", tmp_path)
    old = world.loaded.module.state_dict() | {
        "text_model.embeddings.position_ids": torch.arange(CONTEXT)[None]
    }
    torch.save(old, tmp_path / "pytorch_model.bin")
    assert load_clip(tmp_path).sha256 == world.loaded.sha256 == content_hash(old)


@pytest.mark.parametrize(
    ("sizes", "heads", "parameters"),
    [
        # Published parameter counts of the four models.
        ({"width": 768, "layers": 12, "patch": 32, "text": 512, "embedding": 512}, (12, 8), 151_277_313),
        ({"width": 768, "layers": 12, "patch": 16, "text": 512, "embedding": 512}, (12, 8), 149_620_737),
        ({"width": 1024, "layers": 24, "patch": 14, "text": 768, "embedding": 768}, (16, 12), 427_616_513),
        (
            {"width": 1024, "layers": 24, "patch": 14, "size": 336, "text": 768, "embedding": 768},
            (16, 12),
            427_944_193,
        ),
    ],
)
def test_sizes_of_the_released_models_are_told_from_shapes(sizes, heads, parameters):
    with torch.device("meta"):
        full = {"size": 224, "text_layers": 12, "vocab": 49408, "context": 77} | sizes
        tensors = OpenAIClip(**full).state_dict()
        config = openai_clip.infer_config(tensors, "ViT.pt")
        model = CLIPModel(config)
    # 302 weights at twelve and twelve layers, and the three tensors of bookkeeping.
    assert len(tensors) == 302 + 12 * (full["layers"] - 12) + 3
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == heads
    assert config.vision_config.image_size == full["size"]
    assert config.text_config.eos_token_id == 49407
    assert sum(p.numel() for p in model.parameters()) == parameters
    targets = [name for names in openai_clip.key_table(config).values() for name in names]
    assert sorted(targets) == sorted(model.state_dict())


def test_defaults_of_transformers_and_inferred_config_agree_for_vit_b_32():
    with torch.device("meta"):
        sizes = {"width": 768, "layers": 12, "patch": 32, "size": 224, "text": 512, "text_layers": 12}
        tensors = OpenAIClip(**sizes, embedding=512, vocab=49408, context=77).state_dict()
    assert openai_clip.infer_config(tensors, "ViT.pt").to_diff_dict() == CLIPConfig().to_diff_dict()


# ---------------------------------------------------------------- the hub


def fill_cache(cache: Path, folder: Path, repo: str) -> None:
    root = cache / f"models--{repo.replace('/', '--')}"
    shutil.copytree(folder, root / "snapshots" / ("0" * 40))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)


def test_hub_id_comes_from_the_cache_when_offline(world, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    fill_cache(tmp_path, world.folder / "safe", "acme/tiny-clip")
    loaded = load_clip("acme/tiny-clip", offline=True)
    assert (loaded.source, loaded.format) == ("acme/tiny-clip", "transformers")
    assert loaded.sha256 == world.loaded.sha256


def test_hub_id_that_is_not_cached_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        load_clip("acme/tiny-clip", offline=True)
    one_sentence(
        error, "acme/tiny-clip", "not in the local hub cache", "hf download acme/tiny-clip --local-dir"
    )


def test_damaged_weights_in_the_cache_are_not_called_missing(world, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    fill_cache(tmp_path, world.folder / "safe", "acme/tiny-clip")
    (weights,) = tmp_path.rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:4000])
    with pytest.raises(InputError) as error:
        load_clip("acme/tiny-clip", offline=True)
    one_sentence(error, "acme/tiny-clip", "cannot be read", "SafetensorError")


def test_failed_download_says_what_to_do(monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect.\nCheck your connection.")

    monkeypatch.setattr(CLIPConfig, "get_config_dict", fail)
    with pytest.raises(InputError) as error:
        load_clip("acme/tiny-clip")
    one_sentence(
        error, "could not be fetched", "We couldn't connect", "hf download acme/tiny-clip --local-dir"
    )


# ---------------------------------------------------------------- files that are no CLIP


@pytest.mark.parametrize("source", ["no/such/file.pt", "ViT-B-16.pt", "", "weights/ViT-B-16.pt", "x" * 300])
def test_nothing_there(source):
    with pytest.raises(InputError) as error:
        load_clip(source)
    one_sentence(error, source[:200], "openai/clip-vit-base-patch16")


def make_bad_files(world: SimpleNamespace, folder: Path) -> dict[str, tuple[type, str]]:
    """Writes one file per fault; gives the error class and a telling piece of its sentence."""
    state = world.state

    def save(name: str, content: object) -> None:
        torch.save(content, folder / name)

    (folder / "empty.pt").touch()
    (folder / "page.pt").write_text("<html><body>404 Not Found</body></html>")
    (folder / "noise.pt").write_bytes(bytes(range(256)) * 20)
    (folder / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for name in ("ViT-tiny.pt", "plain.pth"):
        (folder / f"cut-{name}").write_bytes((world.folder / name).read_bytes()[:-5000])
    flipped = bytearray((world.folder / "ViT-tiny.pt").read_bytes())
    flipped[len(flipped) // 2] ^= 0xFF
    (folder / "flipped.pt").write_bytes(flipped)
    safe = (world.folder / "safe" / "model.safetensors").read_bytes()
    (folder / "whole.safetensors").write_bytes(safe)
    (folder / "cut.safetensors").write_bytes(safe[: len(safe) // 2])
    save("list.pt", [1, 2, 3])
    save("unrelated.pt", {"fc1.weight": torch.zeros(2), "fc2.weight": torch.zeros(2)})
    save("sam.pth", {"image_encoder.blocks.0.norm1.weight": torch.zeros(2)})
    save("resnet.pt", {"visual.layer1.0.conv1.weight": torch.zeros(2), "visual.attnpool.x": torch.zeros(2)})
    save("missing.pt", {k: v for k, v in state.items() if "resblocks.1.ln" not in k})
    save("headless.pt", {k: v for k, v in state.items() if k != "visual.proj"})
    save("extra.pt", state | {"foo.weight": torch.zeros(1), "bar.weight": torch.zeros(1)})
    save("shape.pt", state | {"visual.ln_pre.bias": torch.zeros(7)})
    save("thirds.pt", state | {"visual.transformer.resblocks.0.attn.in_proj_bias": torch.zeros(128)})
    save("grid.pt", state | {"visual.positional_embedding": torch.zeros(16, 128)})
    save("flat.pt", state | {"visual.conv1.weight": torch.zeros(128)})
    return {
        "empty.pt": (InputError, "is empty"),
        "page.pt": (InputError, "not a file of weights"),
        "noise.pt": (InputError, "not a file of weights"),
        "lfs.pt": (InputError, "Git LFS pointer"),
        "cut-ViT-tiny.pt": (InputError, "truncated or damaged"),
        "cut-plain.pth": (InputError, "truncated or damaged"),
        "flipped.pt": (InputError, "damaged TorchScript archive"),
        "cut.safetensors": (InputError, "damaged safetensors file"),
        "whole.safetensors": (WeightsError, "a CLIP in transformers' format"),
        "list.pt": (InputError, "holds no named tensors"),
        "unrelated.pt": (WeightsError, "neither CLIP nor SAM (its first tensors are fc1.weight, fc2.weight)"),
        "sam.pth": (WeightsError, "holds a SAM in Meta's format"),
        "resnet.pt": (WeightsError, "a CLIP with a ResNet image tower"),
        # ln_1 and ln_2, weight and bias, of layer 1 of both towers
        "missing.pt": (WeightsError, "8 tensor(s) missing (transformer.resblocks.1.ln_1.bias, "),
        "headless.pt": (WeightsError, "visual.proj is missing"),
        "extra.pt": (WeightsError, "2 tensor(s) unexpected (bar.weight, foo.weight)"),
        "shape.pt": (WeightsError, "vision_model.pre_layrnorm.bias is [7] instead of [128]"),
        "thirds.pt": (WeightsError, "in_proj_bias has 128 rows"),
        "grid.pt": (WeightsError, "16 image positions are not a square grid"),
        "flat.pt": (WeightsError, "visual.conv1.weight has shape [128]"),
    }


def test_bad_files_give_one_sentence_each(world, tmp_path):
    for name, (kind, telling) in make_bad_files(world, tmp_path).items():
        with pytest.raises(PromptRISError) as error:
            load_clip(tmp_path / name)
        assert type(error.value) is kind, name
        one_sentence(error, tmp_path / name, telling)


# ---------------------------------------------------------------- folders that are no CLIP


def broken_folder(world: SimpleNamespace, folder: Path, fault: str) -> str:
    """Copies the good folder and breaks it; gives a telling piece of the sentence to expect."""
    shutil.copytree(world.folder / "safe", folder, dirs_exist_ok=True)
    config, weights = folder / "config.json", folder / "model.safetensors"
    match fault:
        case "config":
            config.unlink()
            (folder / "ViT-B-16.pt").touch()
            return "name the file in it (ViT-B-16.pt)"
        case "json":
            config.write_text("{")
            return "cannot be read as a transformers folder"
        case "weights":
            weights.unlink()
            return "no weights"
        case "lfs":
            weights.write_text("version https://git-lfs.github.com/spec/v1\n")
            return "Git LFS pointer"
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:4000])
            return "cannot be read as a transformers folder"
        case "type":
            config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "sam"}))
            return "holds a model of type 'sam'"
        case "layers":
            content = json.loads(config.read_text())
            content["vision_config"]["num_hidden_layers"] = 4
            config.write_text(json.dumps(content))
            return "16 tensor(s) missing (vision_model.encoder.layers.3.layer_norm1.bias"
        case "fewer":
            content = json.loads(config.read_text())
            content["text_config"]["num_hidden_layers"] = 1
            config.write_text(json.dumps(content))
            return "16 tensor(s) unexpected (text_model.encoder.layers.1"
        case "width":
            content = json.loads(config.read_text())
            content["projection_dim"] = 40
            config.write_text(json.dumps(content))
            return "2 tensor(s) have another shape"
    raise AssertionError(fault)


@pytest.mark.parametrize(
    "fault", ["config", "json", "weights", "lfs", "truncated", "type", "layers", "fewer", "width"]
)
def test_broken_folders_give_one_sentence_each(world, tmp_path, fault, capfd):
    telling = broken_folder(world, tmp_path / fault, fault)
    with pytest.raises(PromptRISError) as error:
        load_clip(tmp_path / fault)
    one_sentence(error, tmp_path / fault, telling)
    output = capfd.readouterr()
    assert "LOAD REPORT" not in output.out + output.err  # transformers' own table would bury the sentence


# ---------------------------------------------------------------- hostile files


def test_code_in_a_plain_checkpoint_is_not_run(tmp_path):
    torch.save({"visual.proj": torch.zeros(1), "x": Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(InputError) as error:
        load_clip(tmp_path / "evil.pt")
    one_sentence(error, tmp_path / "evil.pt", f"asks to run {os.mkdir.__module__}.mkdir", "nothing was run")
    assert not (tmp_path / "ran").exists()


def test_code_in_a_bin_of_a_folder_is_not_run(world, tmp_path):
    shutil.copy(world.folder / "safe" / "config.json", tmp_path)
    torch.save({"logit_scale": Evil(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError) as error:
        load_clip(tmp_path)
    one_sentence(error, tmp_path, "asks to run", "nothing was run")
    assert not (tmp_path / "ran").exists()


def test_code_in_the_pickle_of_an_archive_is_not_run(world, tmp_path):
    pickled = pickle.dumps(Evil(tmp_path / "ran"), protocol=2)
    rewrite(world.folder / "ViT-tiny.pt", tmp_path / "evil.pt", {"data.pkl": pickled})
    with pytest.raises(InputError) as error:
        load_clip(tmp_path / "evil.pt")
    one_sentence(error, tmp_path / "evil.pt", "asks to run", "mkdir", "nothing was run")
    pickle.loads(pickled)
    assert (tmp_path / "ran").exists()  # the pickle does what the test fears


def test_script_code_is_never_read(world, tmp_path):
    with zipfile.ZipFile(world.folder / "ViT-tiny.pt") as archive:
        code = [e.partition("/")[2] for e in archive.namelist() if "/code/" in e and e.endswith(".py")]
    assert code
    rewrite(world.folder / "ViT-tiny.pt", tmp_path / "nonsense.pt", dict.fromkeys(code, b"\x00 no python"))
    assert load_clip(tmp_path / "nonsense.pt").sha256 == world.loaded.sha256


def test_allowed_names_do_nothing_even_when_called(tmp_path):
    """torch.device(...) may stand in an archive; the reader makes an inert record of it, not a device."""
    stream = io.BytesIO(pickle.dumps(torch.device("cpu"), protocol=2))
    record = openai_clip._RecordUnpickler(stream, tmp_path).load()
    assert (record.path, record.args) == ("torch.device", ("cpu",))
    assert not isinstance(record, torch.device)


@pytest.mark.parametrize("fault", ["shorter storage", "longer tensor", "compressed", "no storage"])
def test_archive_whose_tensors_and_storages_disagree_is_refused(world, tmp_path, fault):
    target = tmp_path / "forged.pt"
    with zipfile.ZipFile(world.folder / "ViT-tiny.pt") as archive:
        root = archive.namelist()[0].partition("/")[0]
        data = archive.read(f"{root}/data.pkl")
        kept = {entry: archive.read(entry) for entry in archive.namelist()}
    if fault == "shorter storage":
        kept[f"{root}/data/0"] = kept[f"{root}/data/0"][:-2]
    elif fault == "longer tensor":
        # The position embedding, 17 x 128: its shape (not its storage) becomes 255 x 128.
        assert data.count(b"(K\x11K\x80t") == 1
        kept[f"{root}/data.pkl"] = data.replace(b"(K\x11K\x80t", b"(K\xffK\x80t")
    elif fault == "no storage":
        del kept[f"{root}/data/0"]
    mode = zipfile.ZIP_DEFLATED if fault == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(target, "w", mode) as archive:
        for entry, content in kept.items():
            archive.writestr(entry, content)
    with pytest.raises(InputError) as error:
        load_clip(target)
    one_sentence(error, target, "damaged TorchScript archive")
