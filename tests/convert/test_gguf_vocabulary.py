"""Vocabularies from tokenizer.json: scores against SentencePiece's, ids against transformers."""

import json
import shutil
import struct

import pytest
from transformers import AutoTokenizer

from convert.errors import CheckpointError
from convert.gguf_vocabulary import Kind, read_vocabulary

TEXT = "Hello  world, it's 12345 tokens!\n\n\tÄhnlich 我想 🚀 don't <s> end"


def sentence_pieces(file):
    """{piece: score} of a tokenizer.model: protobuf's fields 1 (pieces) of 1 (text) and 2."""
    data, found = file.read_bytes(), {}

    def varint(place):
        value = shift = 0
        while True:
            byte = data[place]
            value, place, shift = value | (byte & 127) << shift, place + 1, shift + 7
            if byte < 128:
                return value, place

    def fields(place, end):
        while place < end:
            key, place = varint(place)
            if key & 7 == 0:
                value, place = varint(place)
            elif key & 7 == 5:
                value, place = struct.unpack_from("<f", data, place)[0], place + 4
            else:
                size, place = varint(place)
                value, place = (place, place + size), place + size
            yield key >> 3, value

    for number, value in fields(0, len(data)):
        if number == 1:
            piece = dict(fields(*value))
            begin, end = piece[1]
            found[data[begin:end].decode()] = (piece.get(2, 0.0), piece.get(3, 1))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("llama2", 32000), ("gemma", 256000)])
def test_scores_order_pieces_as_sentencepiece_does(assets, name, size):
    folder = assets / "tokenizers" / name
    vocabulary = read_vocabulary(folder, size)
    pieces = sentence_pieces(folder / "tokenizer.model")
    assert vocabulary.model == "llama"
    assert vocabulary.add_space_prefix == (name == "llama2")
    normal = [
        (score, pieces[token][0])
        for token, kind, score in zip(
            vocabulary.tokens, vocabulary.kinds, vocabulary.scores, strict=True
        )
        if kind is Kind.NORMAL and len(token) > 1
    ]
    assert len(normal) > 0.8 * size
    theirs = [score for _, score in sorted(normal, key=lambda pair: pair[0])]
    assert theirs == sorted(theirs)  # some pieces of spaces alone tie there
    assert vocabulary.kinds.count(Kind.BYTE) == 256
    kinds = {2: Kind.UNKNOWN, 3: Kind.CONTROL, 6: Kind.BYTE}
    for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True):
        assert kinds.get(pieces.get(token, (0, 0))[1], kind) is kind, token


@pytest.mark.slow
def test_byte_pairs_are_known_by_the_expression_that_cuts_texts(assets):
    folder = assets / "tokenizers" / "llama3.2"
    vocabulary = read_vocabulary(folder, 128300)
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "llama-bpe")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert vocabulary.tokens[:128256] == tokenizer.convert_ids_to_tokens(range(128256))
    assert vocabulary.kinds[128000:128256] == [Kind.CONTROL] * 256
    assert vocabulary.tokens[128299] == "[PAD128299]"
    assert vocabulary.kinds[128256:] == [Kind.UNUSED] * 44


def tokenizer_json(folder, **values):
    base = {
        "model": {
            "type": "BPE",
            "vocab": {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "<0x0A>": 4, "abab": 6, "▁": 7},
            "merges": [["a", "b"], "ab ab"],
            "byte_fallback": True,
            "unk_token": "<unk>",
        },
        "added_tokens": [
            {"id": 5, "content": "<end>", "special": True},
            {"id": 8, "content": "▁▁", "special": False},
            {"id": 9, "content": "<|told|>", "special": False},
        ],
        "normalizer": None,
        "pre_tokenizer": None,
    }
    base["model"] |= values.pop("model", {})
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(base | values))
    return folder


def test_kinds_and_scores_of_pieces(tmp_path):
    found = read_vocabulary(tokenizer_json(tmp_path), 11)
    assert found.tokens[3:] == ["ab", "<0x0A>", "<end>", "abab", "▁", "  ", "<|told|>", "[PAD10]"]
    assert [kind.name for kind in found.kinds] == [
        *("UNKNOWN", "NORMAL", "NORMAL", "NORMAL", "BYTE", "CONTROL", "NORMAL", "NORMAL"),
        *("USER_DEFINED", "CONTROL", "UNUSED"),
    ]
    assert found.scores[3] > found.scores[6] > found.scores[1] == found.scores[2]
    assert found.scores[5] == found.scores[8] == -1000
    assert found.add_space_prefix is False
    metaspace = {"type": "Metaspace", "prepend_scheme": "first"}
    assert read_vocabulary(tokenizer_json(tmp_path, pre_tokenizer=metaspace), 11).add_space_prefix


QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def cut(pattern):
    split = {"type": "Split", "pattern": {"Regex": pattern}}
    return {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel"}]}


def test_names_of_the_cuts(tmp_path):
    for pre_tokenizer, name in (({"type": "ByteLevel"}, "gpt-2"), (cut(QWEN), "qwen2")):
        found = read_vocabulary(tokenizer_json(tmp_path, pre_tokenizer=pre_tokenizer), 11)
        assert (found.model, found.pre, found.scores) == ("gpt2", name, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"type": "WordLevel"}}, "type 'WordLevel'"),
        ({"model": {"vocab": []}}, "without a vocabulary"),
        ({"model": {"byte_fallback": False}}, "without bytes to fall back on"),
        ({"model": {"vocab": {"a": 11}}}, "token 11 beside a model of 11 tokens"),
        ({"pre_tokenizer": cut("[a-z]+")}, "texts cut by"),
    ],
)
def test_a_tokenizer_that_llama_cpp_cannot_run_is_refused(tmp_path, values, message):
    with pytest.raises(CheckpointError, match=message):
        read_vocabulary(tokenizer_json(tmp_path, **values), 11)


def test_a_folder_without_tokenizer_json_is_refused(tmp_path, assets):
    shutil.copy(assets / "stories260K" / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        read_vocabulary(tmp_path, 11)
