"""The three tokenizers of CLIP's class: ids, pieces, files."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from promptris.errors import InputError
from promptris.modeling.tokenizer import (
    _complete_merges,
    _splitter,
    build_word_tokenizer,
    byte_tokenizer,
    load_tokenizer,
)

WORDS = [
    "the",
    "red",
    "reddish",
    "circle",
    "square",
    "striped",
    "left",
    "right",
    "bottom",
    "above",
    "of",
    "star",
]


@pytest.fixture(scope="module")
def words() -> CLIPTokenizer:
    return build_word_tokenizer(WORDS, model_max_length=16)


def openai_file(folder: Path, merges: list[str]) -> None:
    with gzip.open(folder / "bpe_simple_vocab_16e6.txt.gz", "wt", encoding="utf-8") as stream:
        stream.write('"bpe_simple_vocab_16e6.txt#version: 0.2\n' + "".join(f"{merge}\n" for merge in merges))


# ---------------------------------------------------------------- a vocabulary of words


def test_every_word_is_one_token(words):
    for word in WORDS:
        assert words.tokenize(word) == [f"{word}</w>"]
    assert words.tokenize("The RED circle") == ["the</w>", "red</w>", "circle</w>"]


def test_specials_close_the_vocabulary_and_differ(words):
    size = len(words)
    assert (words.pad_token_id, words.bos_token_id, words.eos_token_id) == (size - 3, size - 2, size - 1)
    assert sorted(words.get_vocab().values()) == list(range(size))
    assert words.eos_token_id != 2  # transformers' CLIP pools differently for that id


def test_padding_and_attention_mask(words):
    batch = words(["red star", "of"], padding="max_length", truncation=True, max_length=6)
    sos, eos, pad = words.bos_token_id, words.eos_token_id, words.pad_token_id
    red, star, of = words.convert_tokens_to_ids(["red</w>", "star</w>", "of</w>"])
    assert batch.input_ids == [[sos, red, star, eos, pad, pad], [sos, of, eos, pad, pad, pad]]
    assert batch.attention_mask == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]


def test_long_text_is_cut_and_keeps_its_end(words):
    ids = words("red " * 50, truncation=True).input_ids
    assert len(ids) == 16
    assert (ids[0], ids[-1]) == (words.bos_token_id, words.eos_token_id)


@pytest.mark.parametrize("text", ["zebra", "Ünïcode 漢字 🙂", "a-b_c!? 42", "it's 'quoted'", "\t\n"])
def test_other_text_falls_back_on_pieces_and_loses_nothing(words, text):
    ids = words(text, add_special_tokens=False).input_ids
    assert not set(ids) & {words.unk_token_id, words.bos_token_id, words.pad_token_id}
    decoded = words.decode(ids).replace(" ", "")
    assert decoded == "".join(text.lower().split())


def test_result_depends_only_on_the_set_of_words(words):
    again = build_word_tokenizer([w.upper() for w in reversed(WORDS)] + ["red", ""], model_max_length=16)
    assert again.get_vocab() == words.get_vocab()
    assert again.backend_tokenizer.to_str() == words.backend_tokenizer.to_str()


def test_result_does_not_depend_on_chance(words):
    """The learner keeps its tables in randomly seeded maps; nothing of that may show."""
    for _ in range(8):
        again = build_word_tokenizer(WORDS, model_max_length=16)
        assert again.backend_tokenizer.to_str() == words.backend_tokenizer.to_str()


def test_words_of_few_letters_that_share_all_their_parts():
    many = ["".join(letters) for length in range(1, 8) for letters in itertools.product("ab", repeat=length)]
    tokenizer = build_word_tokenizer(many, model_max_length=16)
    assert [word for word in many if tokenizer.tokenize(word) != [f"{word}</w>"]] == []


def test_merges_that_miss_a_piece_are_completed_without_touching_the_others():
    merges = [("a", "b"), ("ab", "c</w>"), ("b", "c"), ("bc", "d</w>")]
    # "abc" is whole; "abcd" first joins a and b, which closes its route over bc: "ab" "c" "d</w>" is left.
    completed = _complete_merges(["abc", "abcd"], merges)
    assert completed == [*merges, ("ab", "c"), ("abc", "d</w>")]
    splitter = _splitter(completed)
    assert [[t.value for t in splitter.tokenize(w)] for w in ("abc", "abcd")] == [["abc</w>"], ["abcd</w>"]]


def test_words_that_clip_cuts_become_one_token_per_part():
    tokenizer = build_word_tokenizer(["t-shirt", "two words"], model_max_length=16)
    assert tokenizer.tokenize("t-shirt") == ["t</w>", "-</w>", "shirt</w>"]
    assert tokenizer.tokenize("two words") == ["two</w>", "words</w>"]


def test_no_words_at_all():
    with pytest.raises(InputError, match="at least one word"):
        build_word_tokenizer(["", "  "], model_max_length=16)


# ---------------------------------------------------------------- bytes only


def test_byte_tokenizer_has_clips_ids():
    tokenizer = byte_tokenizer()
    assert (len(tokenizer), tokenizer.model_max_length) == (49408, 77)
    # In CLIP's vocabulary "!" is 0, so "a" is 97 - 33 = 64, and ends of words are 256 further on.
    assert tokenizer("Ab a").input_ids == [49406, 64, 65 + 256, 64 + 256, 49407]
    batch = tokenizer(["a"], padding="max_length", max_length=5)
    assert batch.input_ids == [[49406, 320, 49407, 49407, 49407]]
    assert batch.attention_mask == [[1, 1, 1, 0, 0]]


def test_byte_tokenizer_covers_every_byte():
    tokenizer = byte_tokenizer(514, 4096)
    text = "".join(map(chr, range(33, 0x250))).lower()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert max(ids) < 512
    assert tokenizer.decode(ids).replace(" ", "") == "".join(text.split())


def test_byte_tokenizer_that_is_too_small():
    with pytest.raises(InputError, match="at least 514 ids, not 513"):
        byte_tokenizer(513)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("make", [lambda: build_word_tokenizer(WORDS, 16), lambda: byte_tokenizer(600, 20)])
def test_round_trip_through_a_folder_keeps_everything(make, tmp_path):
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    for again in (load_tokenizer(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)):
        text = "The red starfish, über 42!"
        assert again(text, padding="max_length").input_ids == tokenizer(text, padding="max_length").input_ids
        assert again.get_vocab() == tokenizer.get_vocab()
        assert again.model_max_length == tokenizer.model_max_length
        assert (again.pad_token_id, again.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
        assert isinstance(again, CLIPTokenizer)


def test_openai_merges_beside_the_weight_file(tmp_path):
    openai_file(tmp_path, ["r e", "re d</w>", "t h"])
    (tmp_path / "ViT-B-16.pt").touch()
    for source in (tmp_path / "ViT-B-16.pt", tmp_path):
        tokenizer = load_tokenizer(source)
        assert tokenizer.get_vocab()["re"] == 512
        # 512 + 1 = "red</w>"; "t", "h" merge, "e</w>" = 256 + ord("e") - 33 = 324
        assert tokenizer("red the").input_ids == [515, 513, 514, 324, 516]
        assert (tokenizer.model_max_length, tokenizer.pad_token_id) == (77, 516)


def test_openai_merges_stop_where_clip_stops(tmp_path):
    letters = "abcdefghijklmnopqrstuvwxyz"
    triples = [f"{a} {b}{c}" for a in letters for b in letters for c in letters]
    pairs = [f"{b} {c}" for b in letters for c in letters]
    longer = [f"{a}{b} {c}{d}" for a in letters for b in letters for c in letters for d in letters]
    openai_file(tmp_path, (pairs + triples + longer)[:60_000])
    tokenizer = load_tokenizer(tmp_path)
    assert (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id) == (49408, 49406, 49407)


def test_vocab_and_merges_without_settings_take_the_length_from_the_config(tmp_path):
    tokenizer = byte_tokenizer(514, 20)
    (tmp_path / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert load_tokenizer(tmp_path).model_max_length == 77
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 24}}))
    loaded = load_tokenizer(tmp_path)
    assert loaded.model_max_length == 24
    assert loaded("red").input_ids == tokenizer("red").input_ids


def test_hub_id_from_the_cache(tmp_path, monkeypatch, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        load_tokenizer("acme/tiny-clip", offline=True)
    assert "hf download acme/tiny-clip" in str(error.value)
    snapshot = tmp_path / "models--acme--tiny-clip" / "snapshots" / ("0" * 40)
    words.save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    assert load_tokenizer("acme/tiny-clip", offline=True).get_vocab() == words.get_vocab()


def fault_nothing(folder: Path) -> str:
    (folder / "ViT-B-16.pt").touch()
    return "no tokenizer for ViT-B-16.pt"


def fault_half(folder: Path) -> str:
    (folder / "vocab.json").write_text("{}")
    return "put vocab.json and merges.txt"


def fault_other_model(folder: Path) -> str:
    (folder / "vocab.json").write_text(json.dumps({"[CLS]": 0, "hello": 1}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return "no CLIP tokenizer"


def fault_json(folder: Path) -> str:
    (folder / "tokenizer.json").write_text("{")
    return "cannot be read"


def fault_lfs(folder: Path) -> str:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    return "Git LFS pointer"


def fault_gzip(folder: Path) -> str:
    openai_file(folder, ["r e"] * 100)
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(path.read_bytes()[:-12])
    return "cannot be read as OpenAI's merges"


def fault_merges(folder: Path) -> str:
    openai_file(folder, ["r e", "one two three"])
    return "not OpenAI's list of merges"


@pytest.mark.parametrize(
    "fault", [fault_nothing, fault_half, fault_other_model, fault_json, fault_lfs, fault_gzip, fault_merges]
)
def test_bad_sources_give_one_sentence_each(fault, tmp_path):
    telling = fault(tmp_path)
    source = tmp_path / "ViT-B-16.pt" if fault is fault_nothing else tmp_path
    with pytest.raises(InputError) as error:
        load_tokenizer(source)
    text = str(error.value)
    assert telling in text
    assert str(tmp_path) in text
    assert "\n" not in text


def test_nothing_there():
    with pytest.raises(InputError, match=r"nowhere\.pt is no folder or file here"):
        load_tokenizer("nowhere.pt")


def test_folder_beside_weights_wins_over_openai_file(tmp_path, words):
    words.save_pretrained(tmp_path)
    openai_file(tmp_path, ["r e"])
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "ViT-B-16.pt")
    assert load_tokenizer(tmp_path / "ViT-B-16.pt").get_vocab() == words.get_vocab()
