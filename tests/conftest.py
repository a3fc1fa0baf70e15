"""Small random towers and models, built once."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

# Shapes in signatures are checked here, and only here.
install_import_hook(
    ["promptris.modeling", "promptris.ops.points", "promptris.structures"], "beartype.beartype"
)

import pytest  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_model():
    """A whole model at RefShapes size with random weights; do not change it."""
    from promptris.modeling.build import build_random

    return build_random("refshapes", seed=0)


@pytest.fixture
def unchecked():
    """Shapes and types are not checked, as for users, whose mistakes must meet the package's own messages."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@torch.no_grad()
def stir(module: nn.Module, seed: int, scale: float = 0.1) -> nn.Module:
    """Noise on every parameter, so that no bias is 0, no gain is 1 and no embedding is silent."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in {id(p): p for p in module.parameters()}.values():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return module


@pytest.fixture(scope="session")
def make_clip():
    """Makes small CLIPs: every size can be chosen, every weight is random."""
    from transformers import CLIPConfig, CLIPModel

    def make(
        image_depth=2, text_depth=2, patch=8, image_size=32, image_dim=32, text_dim=24, projection=16, seed=0
    ):
        joint = {"projection_dim": projection}
        vision = {
            "hidden_size": image_dim,
            "intermediate_size": 2 * image_dim,
            "num_hidden_layers": image_depth,
            "num_attention_heads": 4,
            "image_size": image_size,
            "patch_size": patch,
        }
        text = {
            "hidden_size": text_dim,
            "intermediate_size": 2 * text_dim,
            "num_hidden_layers": text_depth,
            "num_attention_heads": 4,
            "max_position_embeddings": 24,
            "vocab_size": 600,
            "eos_token_id": 599,
        }
        torch.manual_seed(seed)
        clip = CLIPModel(CLIPConfig(text_config=text | joint, vision_config=vision | joint, **joint))
        return stir(clip, seed).eval()

    return make


@pytest.fixture(scope="session")
def make_sam():
    """Makes small SAMs (8 x 8 grid, 32 x 32 masks), with or without relative positions."""
    from transformers import SamConfig, SamModel

    def make(use_rel_pos=False, seed=0):
        torch.manual_seed(seed)
        config = SamConfig(
            vision_config={
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 64,
                "patch_size": 8,
                "window_size": 4,
                "global_attn_indexes": [1],
                "use_rel_pos": use_rel_pos,
                "output_channels": 32,
                "num_pos_feats": 16,
                "initializer_range": 0.02,
            },
            prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 8},
            mask_decoder_config={
                "hidden_size": 32,
                "mlp_dim": 64,
                "num_attention_heads": 4,
                "iou_head_hidden_dim": 32,
            },
        )
        sam = SamModel(config)
        # Released SAMs have a position matrix of unit scale; transformers' random one is far larger.
        torch.nn.init.normal_(sam.shared_image_embedding.positional_embedding)
        return stir(sam, seed, 0.2).eval()

    return make


@pytest.fixture(scope="session")
def make_model(make_clip, make_sam):
    """Makes whole small models; keyword arguments replace parts of the configuration."""
    from promptris.config import DecoderConfig, PromptingConfig, PromptRISConfig, SamPromptConfig
    from promptris.modeling.build import build_model
    from promptris.modeling.tokenizer import byte_tokenizer

    def make(clip=None, sam=None, seed=0, *, prompting=None, decoder=None, sam_prompts=None, **top):
        config = PromptRISConfig(
            **{"clip_image_size": 48, **top},
            prompting=PromptingConfig(**{"num_prompts": 3, "heads": 4, **(prompting or {})}),
            decoder=DecoderConfig(**{"dim": 16, "heads": 4, **(decoder or {})}),
            sam_prompts=SamPromptConfig(**{"text_heads": 4, **(sam_prompts or {})}),
        )
        clip = make_clip(seed=seed) if clip is None else clip
        sam = make_sam(seed=seed) if sam is None else sam
        tokenizer = byte_tokenizer(
            clip.config.text_config.vocab_size, clip.config.text_config.max_position_embeddings
        )
        model = build_model(clip, sam, config, tokenizer, seed)
        for part in (model.prompting, model.decoder, model.text_prompter):
            stir(part, seed + 1, 0.05)
        return model

    return make


@pytest.fixture(scope="session")
def teach_prompts():
    """Function that fits a SAM to prompts of given objects."""
    import torch.nn.functional as F

    from promptris.losses import dice_loss, mask_bce
    from promptris.modeling.sam_adapter import FOREGROUND
    from promptris.ops.resizing import pool_masks

    def teach(sam, pixels, image_index, masks, steps=250):
        """Fit SAM to answer a blurred mask with a click by the mask: what a released SAM already knows.

        `masks` are of all objects, so that SAM learns nothing of which of them is ever referred to.
        """
        sam.requires_grad_(True)
        sam.sam.shared_image_embedding.requires_grad_(False)
        optimizer = torch.optim.AdamW([p for p in sam.parameters() if p.requires_grad], lr=4e-3)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        count, generator = len(masks), torch.Generator().manual_seed(0)
        label = torch.full((count, 1), FOREGROUND)
        present = torch.ones(count, 2, dtype=torch.bool)
        for _ in range(steps):
            offset, gain = torch.rand(2, count, 1, 1, generator=generator)
            blurred = (pool_masks(masks, (12, 12)) - 0.2 - 0.3 * offset) * (4 + 8 * gain)
            blurred = blurred + 0.5 * torch.randn(blurred.shape, generator=generator)
            prompt = F.interpolate(blurred[:, None], masks.shape[1:], mode="bilinear")[:, 0]
            cells = torch.multinomial(masks.flatten(1), 1, generator=generator)[:, 0]
            click = sam.click_embeddings(sam.embed_position(sam.cell_centres(cells))[:, None], label)
            sparse = torch.cat([click, sam.padding_point().expand(count, 1, -1)], dim=1)
            logits, _ = sam.decode(
                sam.encode_image(pixels)[image_index], sam.embed_mask(prompt), sparse, present
            )
            loss = 2 * mask_bce(logits, masks) + dice_loss(logits, masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
        sam.requires_grad_(False)

    return teach


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with clip/ and sam/ of RefShapes' sizes, pretrained for a few steps."""
    from promptris.training.config import PretrainingConfig, TowersConfig
    from promptris.training.towers import pretrain_tower

    folder = tmp_path_factory.mktemp("towers")
    few = PretrainingConfig(steps=3, scenes=4, warmup=1, gate_scenes=4)
    config = TowersConfig(clip_pretraining=few, sam_pretraining=few)
    for name in ("clip", "sam"):
        pretrain_tower(name, config, folder, seed=0, resume=False)
    return folder


@pytest.fixture(scope="session")
def decode_brush():
    """Reads Label Studio's run lengths bit by bit."""

    def decode(stream: list[int]) -> list[int]:
        """The values of a stream, as its format is described: every width is read from the header."""
        bits = "".join(f"{byte:08b}" for byte in stream)
        place = 0

        def read(width: int) -> int:
            nonlocal place
            place += width
            assert place <= len(bits)
            return int(bits[place - width : place], 2)

        count, size = read(32), read(5) + 1
        widths = [read(4) + 1 for _ in range(4)]
        values: list[int] = []
        while len(values) < count:
            is_run = read(1)
            length = read(widths[read(2)]) + 1
            values += [read(size)] * length if is_run else [read(size) for _ in range(length)]
        assert set(bits[place:]) <= {"0"} and len(bits) - place < 8
        assert len(values) == count
        return values

    return decode
