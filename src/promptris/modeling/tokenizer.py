"""Tokenizers of CLIP's class: CLIP's own, one built over a small set of words, and one of bytes only."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from promptris.errors import InputError
from promptris.modeling.base_weights import locate_source
from promptris.modeling.weight_files import refuse_lfs_pointer

if TYPE_CHECKING:
    from tokenizers.models import BPE
    from transformers import CLIPTokenizer

START, END, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"

CLIP_CONTEXT = 77
CLIP_VOCAB = 49408

_WORD_END = "</w>"
_OPENAI_FILE = "bpe_simple_vocab_16e6.txt.gz"
_HUB_EXAMPLE = "openai/clip-vit-base-patch16"
# The file lists five times as many merges as CLIP uses: 49408 ids less two alphabets of 256 and two specials.
_OPENAI_MERGES = CLIP_VOCAB - 2 * 256 - 2
_OPENAI_MAX_CHARS = 1 << 25


def load_tokenizer(source: str | Path, *, offline: bool = False) -> CLIPTokenizer:
    """CLIP's tokenizer, from the place that its weights come from.

    Args:
        source: a transformers folder, a hub id, or an original weight file such as ``ViT-B-16.pt`` with
            tokenizer files beside it: tokenizer.json, or vocab.json and merges.txt, or OpenAI's
            bpe_simple_vocab_16e6.txt.gz (which a folder may hold too).
        offline: use only what is on this machine.

    Returns:
        The tokenizer; its `model_max_length` counts [SOS] and [EOS], and is 77 where no file says otherwise.

    Raises:
        InputError: there is no such source, no tokenizer with it, or one that is not CLIP's.
    """
    place, path = locate_source(source, f"give a folder, a weight file or a hub id such as {_HUB_EXAMPLE}")
    if place == "hub":
        return _from_pretrained(str(path), offline=offline, hub=True)
    folder = path if place == "folder" else path.parent
    files = [folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt", _OPENAI_FILE)]
    for file in files:
        if file.is_file():
            refuse_lfs_pointer(file)
    whole, vocab, merges, openai = (file.is_file() for file in files)
    if whole or (vocab and merges):
        return _from_pretrained(str(folder), offline=True, hub=False)
    if openai:
        return _from_openai(files[3])
    where = f"{folder} has no tokenizer" + (f" for {path.name}" if place == "file" else "")
    raise InputError(
        f"{where}: put vocab.json and merges.txt (or tokenizer.json) of {_HUB_EXAMPLE}, or OpenAI's "
        f"{_OPENAI_FILE}, there"
    )


def build_word_tokenizer(words: Iterable[str], model_max_length: int) -> CLIPTokenizer:
    """A tokenizer of CLIP's class with its own small vocabulary, in which every given word is one token.

    Any other text falls back on shorter pieces, in the end on single bytes, so nothing is ever unknown. The
    ids are the 256 bytes, the 256 bytes that end a word, the learned pieces, then ``<|pad|>``, [SOS] and
    [EOS]: [EOS] is the largest id, as in CLIP. The same set of words gives the same tokenizer, in any order
    and any case.

    Args:
        words: the vocabulary. What CLIP's rule cuts ("t-shirt", "42") becomes one token per part.
        model_max_length: the longest sequence, [SOS] and [EOS] included.

    Raises:
        InputError: there is not a single word.
    """
    base = byte_tokenizer(2 * 256 + 2, model_max_length).backend_tokenizer
    split = base.pre_tokenizer.pre_tokenize_str
    pieces = sorted(
        {piece for word in words for piece, _ in split(base.normalizer.normalize_str(word).strip())}
    )
    if not pieces:
        raise InputError("a word tokenizer needs at least one word, but none was given")
    merges = _learn_merges(pieces)
    tokens = [*_byte_tokens(), *dict.fromkeys(a + b for a, b in merges), PAD, START, END]
    return _tokenizer(tokens, merges, model_max_length, pad=PAD)


def byte_tokenizer(vocab_size: int = CLIP_VOCAB, model_max_length: int = CLIP_CONTEXT) -> CLIPTokenizer:
    """A tokenizer of CLIP's class that knows single bytes only, for models with random weights.

    [SOS] and [EOS] are the last two ids (49406 and 49407 by default), padding is [EOS] as in CLIP, and the
    ids between the bytes and the specials belong to fillers that no text produces.

    Raises:
        InputError: `vocab_size` has no room for two alphabets of 256 bytes and two specials.
    """
    fillers = vocab_size - 2 * 256 - 2
    if fillers < 0:
        raise InputError(f"a byte tokenizer needs a vocabulary of at least 514 ids, not {vocab_size}")
    tokens = [*_byte_tokens(), *(f"<|unused{i}|>" for i in range(fillers)), START, END]
    return _tokenizer(tokens, [], model_max_length, pad=END)


def _byte_symbols() -> list[str]:
    """One visible character per byte, in CLIP's order: printing bytes stand for themselves and come first."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]


def _byte_tokens() -> list[str]:
    symbols = _byte_symbols()
    return symbols + [symbol + _WORD_END for symbol in symbols]


def _tokenizer(
    tokens: list[str], merges: list[tuple[str, str]], model_max_length: int, pad: str
) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=model_max_length)


def _learn_merges(pieces: list[str]) -> list[tuple[str, str]]:
    """Merges, in order, under which every piece becomes one token."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    learner = Tokenizer(BPE())
    trainer = BpeTrainer(
        vocab_size=len(_byte_tokens()) + sum(map(len, pieces)),  # room for every merge there can be
        min_frequency=1,
        end_of_word_suffix=_WORD_END,
        # The alphabet goes in as specials because only those get their ids in a fixed order, and ties are
        # broken by id: the merges would differ from run to run.
        special_tokens=_byte_tokens(),
        show_progress=False,
    )
    learner.train_from_iterator(pieces, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    return _complete_merges(pieces, list(dict.fromkeys((first, second) for first, second in learned)))


def _complete_merges(pieces: list[str], merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The given merges, and after them those that a piece still lacks to become one token.

    Learned merges need not be complete: where one token can be made along two routes, applying all merges in
    their order may miss the other route. Joining what is left comes after all other merges, so it cannot
    touch a piece that is whole already.
    """
    merges = list(merges)
    splitter = _splitter(merges)
    for piece in pieces:
        parts = [token.value for token in splitter.tokenize(piece)]
        if len(parts) == 1:
            continue
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
        splitter = _splitter(merges)
    return merges


def _splitter(merges: list[tuple[str, str]]) -> BPE:
    from tokenizers.models import BPE

    tokens = dict.fromkeys([*_byte_tokens(), *(a + b for a, b in merges)])
    return BPE({token: index for index, token in enumerate(tokens)}, merges, end_of_word_suffix=_WORD_END)


def _from_pretrained(source: str, *, offline: bool, hub: bool) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=offline)
    except Exception as error:  # whatever the hub client, the network or a damaged file raised
        reason = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
        raise InputError(
            f"{source}: its tokenizer cannot be read ({type(error).__name__}: {reason})"
        ) from error
    # Where files are missing, transformers hands out an empty tokenizer instead of an error.
    vocab = tokenizer.get_vocab()
    if any(token not in vocab for token in _byte_tokens()):
        hint = (
            f"fetch it once with a connection (hf download {source})" if hub else "put CLIP's own files there"
        )
        raise InputError(f"{source} has no CLIP tokenizer (no byte-level vocabulary was found): {hint}")
    if tokenizer.model_max_length > 1_000_000:  # transformers' way of saying that no file told
        tokenizer.model_max_length = _context_length(Path(source) / "config.json")
    return tokenizer


def _context_length(config: Path) -> int:
    """Text positions of the model whose config.json lies beside the tokenizer; CLIP's 77 without one."""
    try:
        length = json.loads(config.read_text(encoding="utf-8"))["text_config"]["max_position_embeddings"]
    except (OSError, ValueError, LookupError, TypeError):
        return CLIP_CONTEXT
    return length if isinstance(length, int) else CLIP_CONTEXT


def _from_openai(path: Path) -> CLIPTokenizer:
    """OpenAI's own file: a heading, then one merge per line; ids are bytes, final bytes, merges, specials."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            lines = stream.read(_OPENAI_MAX_CHARS).splitlines()[1 : 1 + _OPENAI_MERGES]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as OpenAI's merges ({error}): get the file again") from error
    merges = [(first, second) for first, second in (line.split() for line in lines if line.count(" ") == 1)]
    if not merges or len(merges) != len(lines):
        raise InputError(f"{path} is not OpenAI's list of merges, one pair per line: get the file again")
    tokens = [*_byte_tokens(), *(first + second for first, second in merges), START, END]
    return _tokenizer(tokens, merges, CLIP_CONTEXT, pad=END)
