"""The whole model: frozen CLIP and SAM, bridged by learned prompts (Fig. 2 of the paper)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import CLIPTokenizer

from promptris.config import PROMPT_NAMES, PromptName, PromptRISConfig, check_prompt_names
from promptris.modeling.clip_towers import ClipTowers
from promptris.modeling.cross_modal_decoder import CrossModalDecoder
from promptris.modeling.cross_modal_prompting import CrossModalPrompting
from promptris.modeling.sam_adapter import SamAdapter
from promptris.modeling.sam_prompts import Corrections, TextPrompter, point_position, sparse_prompts
from promptris.ops.resizing import resize_logits
from promptris.processing import Processor, normalised
from promptris.structures import ExpressionBatch, ImageBatch, ImageFeatures, PromptRISOutput


class PromptRIS(nn.Module):
    """Prompt-RIS: image + expression -> mask of the referent.

    Parts are built outside (`promptris.modeling.build`) and handed in. The towers are frozen and always in
    evaluation mode; everything else is trainable. Outputs never depend on `self.training`.

    Args:
        clip: CLIP's towers.
        sam: SAM.
        prompting: cross-modal prompting.
        decoder: cross-modal decoder.
        text_prompter: text prompts for SAM.
        config: the configuration the parts were built from; read for the enabled prompts and the Gumbel
            temperature, and saved with the weights.
        tokenizer: transformers' CLIPTokenizer that goes with `clip`; kept with the model, used by `processor`.

    Attributes:
        sources: where each tower's weights come from ("source", "format", "sha256"), when that is known.
        read_from: the folder that the weights were read from, if any.
        towers_are_frozen: whether training leaves CLIP and SAM as they are.
    """

    def __init__(
        self,
        clip: ClipTowers,
        sam: SamAdapter,
        prompting: CrossModalPrompting,
        decoder: CrossModalDecoder,
        text_prompter: TextPrompter,
        config: PromptRISConfig,
        tokenizer: CLIPTokenizer,
    ) -> None:
        super().__init__()
        self.clip, self.sam = clip, sam
        self.prompting, self.decoder, self.text_prompter = prompting, decoder, text_prompter
        self.config = config
        self.tokenizer = tokenizer
        self.sources: dict[str, dict[str, str]] = {}
        self.read_from: Path | None = None
        self.towers_are_frozen = True
        for tower in self.frozen_towers():
            tower.requires_grad_(False)
        self.train(False)

    def frozen_towers(self) -> tuple[nn.Module, nn.Module]:
        """CLIP and SAM; frozen unless `unfreeze_towers` was called."""
        return self.clip, self.sam

    def train(self, mode: bool = True) -> PromptRIS:
        """Training mode for the learned parts; the towers stay in evaluation mode."""
        super().train(mode)
        for tower in self.frozen_towers():
            tower.eval()
        return self

    def unfreeze_towers(self) -> None:
        """Let training change CLIP and SAM too, all but SAM's position matrix: an upper bound, not the method.

        They stay in evaluation mode. Such a model has to be saved with its towers.
        """
        for tower in self.frozen_towers():
            tower.requires_grad_(True)
        self.sam.sam.shared_image_embedding.requires_grad_(False)
        self.sam.sam.prompt_encoder.shared_embedding.requires_grad_(False)
        self.towers_are_frozen = False

    def checkpoint_activations(self, on: bool = True) -> None:
        """Compute what is inside a layer a second time in the backward pass instead of keeping it until then.

        Results and gradients stay the same; a training step takes less memory and more time.
        """
        self.clip.recompute = self.prompting.recompute = self.sam.recompute = on

    def processor(self) -> Processor:
        """Prepares images and expressions for this model."""
        longest = self.clip.context_length
        if self.config.max_words:
            longest = min(longest, self.config.max_words)
        return Processor(self.tokenizer, self.config.clip_image_size, self.sam.image_size, longest)

    def save_pretrained(
        self, folder: str | Path, full: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        """Write a model folder: configuration, weights, tokenizer, what images go through, and a card.

        Args:
            folder: created if needed; files of the same names are replaced.
            full: also write the frozen towers, so that the folder needs nothing else.
            dtype: store floating-point weights in this type; loading gives float32 again.

        Raises:
            InputError: when the towers' origin is not known and `full` is not set.
        """
        from promptris.modeling.pretrained import save_pretrained

        save_pretrained(self, Path(folder), full, dtype)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        clip: str | Path | None = None,
        sam: str | Path | None = None,
        revision: str | None = None,
    ) -> PromptRIS:
        """Read what `save_pretrained` wrote; a folder is read without any network.

        Args:
            name: built-in name, folder or hub id.
            clip: where CLIP is now, when it is not where it was at training time; its content must be the same.
            sam: the same for SAM.
            revision: branch, tag or commit of a model on the hub; None means its main branch.

        Raises:
            InputError: when there is no such model or revision.
            WeightsError: when weights are missing, left over or differ from those trained with.
        """
        from promptris.modeling.pretrained import from_pretrained

        return from_pretrained(name, clip, sam, revision)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        full: bool = False,
        token: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
    ) -> str:
        """Upload the model to the hub, with its card; the repository is made if there is none.

        A model that was read from a folder and is still the same keeps that folder's card. Any other gets a short
        one that says that nothing is known of its training.

        Args:
            repo_id: owner/name.
            private: make the repository visible to its owner only.
            full: also upload the frozen towers, so that nothing else is needed to load it.
            token: of the hub, with the right to write; None takes the one of `hf auth login` or HF_TOKEN.
            commit_message: what changed.
            license: for the card, as the hub spells it ("apache-2.0"); None leaves the card's own.

        Returns:
            the address of the model's page.

        Raises:
            InputError: when there is no token or it does not suffice, the name is not valid, or the hub cannot be
                reached; also as `save_pretrained`.
        """
        from promptris.modeling.publishing import push_model

        return push_model(self, repo_id, full, private, token, commit_message, license)

    def encode_image(self, images: ImageBatch) -> ImageFeatures:
        """Everything that is computed once per image, however many expressions there are."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.towers_are_frozen):
            ready = normalised(images, next(self.parameters()).dtype)
            embeddings = ready.sam_embeddings
            if embeddings is None and ready.sam_pixels is not None:
                embeddings = self.sam.encode_image(ready.sam_pixels)
            return ImageFeatures(self.embed_for_clip(ready.clip_pixels), embeddings)

    def compile_layers(self, **options: Any) -> None:
        """Let `torch.compile` have the layers of CLIP and SAM and those between them, with its options.

        Answers then differ by rounding. The first one, and the first of every new shape, takes up to minutes.
        """
        self.clip.compile_layers(**options)
        self.prompting.compile_generators(**options)
        self.decoder.compile(**options)
        self.sam.compile_encoder(**options)
        self.sam.compile_decoder(**options)

    def embed_for_clip(self, pixels: Float[Tensor, "I 3 h w"]) -> Float[Tensor, "I tokens D_IC"]:
        """CLIP's tokens before the first layer that is prompted."""
        tokens = self.clip.embed_image(pixels)
        for step in range(self.prompting.first_step):
            tokens = self.clip.image_step(step, tokens, tokens[:, :0])
        return tokens

    def forward(
        self,
        features: ImageFeatures,
        expressions: ExpressionBatch,
        prompts: tuple[PromptName, ...] | Bool[Tensor, "B 3"] | None = None,
        sample_point: bool | Float[Tensor, "B P"] = False,
        corrections: Corrections | None = None,
    ) -> PromptRISOutput:
        """Predict masks for B expressions (Eq. 1 to 6).

        Args:
            features: from `encode_image`; without SAM's embeddings only the coarse mask is predicted.
            expressions: B expressions, each pointing at one of the features' images.
            prompts: SAM prompts to use: names, or a [B, 3] mask (mask, point, text) that lets every sample
                have its own, as prompt dropout does; None means those enabled in the configuration.
            sample_point: draw the point by straight-through Gumbel-Softmax (training) instead of taking the
                highest response; a tensor over all 4H_S·4W_S positions is the Gumbel noise to use.
            corrections: a person's clicks and box.
        """
        patch_tokens, words = self.encode_expressions(features.clip_tokens, expressions)
        return self.answer(patch_tokens, words, features, expressions, prompts, sample_point, corrections)

    def answer(
        self,
        patch_tokens: Float[Tensor, "B N_C D_IC"],
        words: Float[Tensor, "B T D_T"],
        features: ImageFeatures,
        expressions: ExpressionBatch,
        prompts: tuple[PromptName, ...] | Bool[Tensor, "B 3"] | None = None,
        sample_point: bool | Float[Tensor, "B P"] = False,
        corrections: Corrections | None = None,
    ) -> PromptRISOutput:
        """Masks from what `encode_expressions` gives (Eq. 1 to 4); arguments as in `forward`."""
        coarse, coarse_hr = self.compare(patch_tokens, words, expressions.word_mask)
        output = PromptRISOutput(coarse, coarse_hr, expressions.image_index)
        if features.sam_embeddings is None:
            return output
        output.mask_logits, output.predicted_iou, output.point_index = self.refine(
            features.sam_embeddings[expressions.image_index],
            coarse_hr,
            words,
            expressions.word_mask,
            self._keep_mask(prompts, expressions),
            sample_point,
            corrections,
        )
        return output

    def respond(
        self, clip_tokens: Float[Tensor, "I tokens D_IC"], expressions: ExpressionBatch
    ) -> tuple[Float[Tensor, "B H_C W_C"], Float[Tensor, "B H W"], Float[Tensor, "B T D_T"]]:
        """CLIP's part of `forward`: S'_C, S_C (Eq. 1, 2, 5, 6) and the words F_T."""
        patch_tokens, words = self.encode_expressions(clip_tokens, expressions)
        return *self.compare(patch_tokens, words, expressions.word_mask), words

    def compare(
        self,
        patch_tokens: Float[Tensor, "B N_C D_IC"],
        words: Float[Tensor, "B T D_T"],
        word_mask: Bool[Tensor, "B T"],
    ) -> tuple[Float[Tensor, "B H_C W_C"], Float[Tensor, "B H W"]]:
        """S'_C and S_C from both towers' tokens (Eq. 1, 2)."""
        coarse = self.decoder(patch_tokens, words, word_mask, (self.coarse_grid, self.coarse_grid))
        return coarse, resize_logits(coarse, (self.sam.mask_size, self.sam.mask_size))

    def refine(
        self,
        image: Float[Tensor, "B D_S H_S W_S"],
        coarse_hr: Float[Tensor, "B H W"],
        words: Float[Tensor, "B T D_T"],
        word_mask: Bool[Tensor, "B T"],
        keep: Bool[Tensor, "B 3"],
        sample_point: bool | Float[Tensor, "B P"] = False,
        corrections: Corrections | None = None,
    ) -> tuple[Float[Tensor, "B H W"], Float[Tensor, " B"], Int[Tensor, " B"]]:
        """SAM's part of `forward`: S' and SAM's own estimate of the IoU (Eq. 3, 4), and the chosen position.

        Args:
            image: F_IS of each expression's image.
            coarse_hr: S_C.
            words: F_T.
            word_mask: real words.
            keep: which of mask, point and text prompt each expression has.
            sample_point: as for `forward`.
            corrections: a person's clicks and box.
        """
        position, index = point_position(
            self.sam, coarse_hr, sample_point, self.config.sam_prompts.gumbel_temperature
        )
        text = self.text_prompter(words, word_mask, image, self.sam.image_code())
        sparse, present = sparse_prompts(self.sam, position, text, word_mask, keep, corrections)
        dense = torch.where(keep[:, 0, None, None, None], self.sam.embed_mask(coarse_hr), self.sam.no_mask())
        return *self.sam.decode(image, dense, sparse, present), index

    def encode_expressions(
        self, clip_tokens: Float[Tensor, "I tokens D_IC"], expressions: ExpressionBatch
    ) -> tuple[Float[Tensor, "B N_C D_IC"], Float[Tensor, "B T D_T"]]:
        """Both towers in lock step with cross-modal prompting (Eq. 5 and 6).

        Both directions read the state before the step. The image tower runs once per image until the words
        first prompt it.

        Returns:
            patch tokens F_IC, [CLS] left out, and words F_T, both after CLIP's last norms.
        """
        index = expressions.image_index
        image, words = clip_tokens, self.clip.embed_text(expressions.input_ids)
        for step in range(self.prompting.first_step):
            words = self.clip.text_step(step, words, words[:, :0])
        shared = True
        for step in range(self.prompting.first_step, self.clip.depth):
            to_text = self.prompting.text_prompts(step, image[:, 1:])
            to_text = to_text[index] if shared else to_text
            to_image = self.prompting.image_prompts(step, words, expressions.word_mask)
            if shared and not to_image.shape[1]:
                image = self.clip.image_step(
                    step, image, to_image.new_zeros(image.shape[0], *to_image.shape[1:])
                )
            else:
                image = self.clip.image_step(step, image, to_image, index if shared else None)
                shared = False
            words = self.clip.text_step(step, words, to_text)
        image = self.clip.finish_image(image[:, 1:])
        return image[index] if shared else image, self.clip.finish_text(words)

    @property
    def coarse_grid(self) -> int:
        """H_C = W_C."""
        return self.config.clip_image_size // self.clip.patch_size

    def _keep_mask(
        self, prompts: tuple[PromptName, ...] | Tensor | None, expressions: ExpressionBatch
    ) -> Bool[Tensor, "B 3"]:
        if isinstance(prompts, Tensor):
            return prompts
        names = self.config.sam_prompts.enabled if prompts is None else check_prompt_names(prompts)
        # Filled in where it is: a GPU would have to wait for a copy.
        device = expressions.input_ids.device
        row = torch.stack([torch.full((), name in names, device=device) for name in PROMPT_NAMES])
        return row.expand(len(expressions.input_ids), -1)
