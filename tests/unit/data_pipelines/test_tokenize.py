import io
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_pipelines.hugging_face_form import to_hugging_face
from data_pipelines.tokenize import SentencePieceTokenizer, load_tokenizer, train_sentencepiece

CODE = 'def f(x):\n\tif x == "a  b":\n        return {x: [1, 2]}  # two\n\n\n    pass\r\n'
TEXTS = [
    "",
    " ",
    "   leading and trailing   ",
    "\n\n\t\t \t\n",
    CODE,
    "naïve café — “quotes” … ½ ﬁ Å A\u030a",
    "日本語 한국어 العربية 🙂👩‍👩‍👧",
    "a\x00b\x1f\x7f\x85\xa0\u2028\u3000c\ufeff",
    "<s> </s> <unk> <0x0A> </s>",
    "=" * 37 + "aaaa" * 9 + "-" * 64 + " " * 21,
]


def varied_texts() -> list[str]:
    draw = random.Random(0)
    parts = ["a", "b", "ab", "aa", " ", "  ", "\n", "\t", "=", "self", "é", "日", "0", "</s>", CODE]
    return [*TEXTS, *("".join(draw.choices(parts, k=draw.randint(0, 30))) for _ in range(500))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train_sentencepiece([CODE * 20, Path(__file__).read_text()], 600, folder)
    return folder


def train_model(**settings: Any) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(Path(__file__).read_text().splitlines()),
        model_writer=model,
        vocab_size=500,
        byte_fallback=True,
        minloglevel=2,
        **settings,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def byte_level_folder(folder: Path, **special: str) -> Path:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([CODE] * 3, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


def test_a_trained_tokenizer_gives_every_text_back(trained: Path) -> None:
    tokenizer = load_tokenizer(trained)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in varied_texts()] == varied_texts()


def test_a_trained_tokenizer_has_pieces_for_runs_of_spaces(trained: Path) -> None:
    tokenizer = load_tokenizer(trained)
    assert len(tokenizer.encode("        ")) == 1


def test_a_trained_tokenizer_ends_documents_and_has_no_untrained_start(trained: Path) -> None:
    tokenizer = load_tokenizer(trained)
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id) == (600, 1, None)
    assert tokenizer.decode([tokenizer.eos_id, *tokenizer.encode("x"), tokenizer.eos_id]) == "x"
    assert tokenizer.eos_id not in tokenizer.encode("</s>")


def test_training_twice_writes_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_sentencepiece([CODE, "more text " * 50], 310, tmp_path / name)
    files = ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_training_takes_texts_as_long_as_they_come(tmp_path: Path) -> None:
    tokenizer = train_sentencepiece(["語" * 70_000 + "ab" * 70_000], 270, tmp_path)
    assert len(tokenizer.encode("ab" * 16)) < 16


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (["hello world"], 5000, r"vocab_size 5000 is too large for the text: give at most \d+"),
        (["hello world"], 260, r"260 does not hold the characters of the text: give at least \d+"),
        ([], 300, "no document with text is left to train on"),
    ],
)
def test_a_vocabulary_that_does_not_fit_the_text_is_refused_in_one_line(
    tmp_path: Path, texts: list[str], vocab_size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        train_sentencepiece(texts, vocab_size, tmp_path / "tokenizer")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tokenizer").exists()


def test_the_vocabulary_named_in_the_refusal_works(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most") as caught:
        train_sentencepiece(["hello world"], 5000, tmp_path)
    most = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert train_sentencepiece(["hello world"], most, tmp_path).vocab_size == most


def test_transformers_reads_a_trained_tokenizer_to_the_same_ids(trained: Path) -> None:
    ours, theirs = load_tokenizer(trained), AutoTokenizer.from_pretrained(trained)
    assert isinstance(ours, SentencePieceTokenizer)
    for text in varied_texts():
        ids = ours.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert (theirs.eos_token_id, theirs.bos_token_id, len(theirs)) == (1, None, 600)


def test_transformers_reads_a_model_like_llama_2s_to_the_same_ids(tmp_path: Path) -> None:
    settings = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    processor = train_model(model_type="bpe", add_dummy_prefix=True, **settings)
    ours = SentencePieceTokenizer(processor)
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in varied_texts():
        ids = ours.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids) == text
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id) == (1, 2)


def test_a_model_without_an_exact_form_is_saved_alone_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = SentencePieceTokenizer(train_model(model_type="unigram"))
    with caplog.at_level(logging.WARNING):
        ours.save(tmp_path)
    assert "no exact Hugging Face form" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]
    assert load_tokenizer(tmp_path).encode("return x") == ours.encode("return x")


def test_a_model_file_is_loaded_as_it_is(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "any.model"
    file.write_bytes((trained / "tokenizer.model").read_bytes())
    assert load_tokenizer(file).encode(CODE) == load_tokenizer(trained).encode(CODE)


def test_a_tokenizer_of_transformers_gives_its_own_ids_without_special_tokens(
    tmp_path: Path,
) -> None:
    folder = byte_level_folder(tmp_path, bos_token="<s>", eos_token="</s>")
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS[:-2]:
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode([ours.eos_id, *ids]) == text
    assert (ours.bos_id, ours.eos_id) == (0, 1)


def test_the_vocabulary_counts_tokens_that_were_added(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path, eos_token="</s>")
    before = load_tokenizer(folder).vocab_size
    theirs = AutoTokenizer.from_pretrained(folder)
    theirs.add_tokens([AddedToken("<more>")])
    theirs.save_pretrained(folder)
    assert load_tokenizer(folder).vocab_size == before + 1


def test_a_tokenizer_of_transformers_is_saved_to_the_same_ids(tmp_path: Path) -> None:
    ours = load_tokenizer(byte_level_folder(tmp_path / "a", eos_token="</s>"))
    ours.save(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b")
    assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]


def test_hugging_face_files_that_say_more_than_the_model_beside_them_win(
    trained: Path, tmp_path: Path
) -> None:
    load_tokenizer(trained).save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    theirs.add_special_tokens({"eos_token": "<|end|>"})
    theirs.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (600, 601)


def test_what_is_not_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(b"hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    no_end = byte_level_folder(tmp_path / "no_end", bos_token="<s>")
    for path, message in (
        (tmp_path / "a.model", "a.model is not a SentencePiece model"),
        (tmp_path / "empty", "empty: no SentencePiece file or tokenizer folder here"),
        (tmp_path / "broken", "broken: no SentencePiece file or tokenizer folder here"),
        (tmp_path / "nowhere", "nowhere: there is no such file or folder"),
        ("nowhere.model", "nowhere.model: there is no such file or folder"),
        ("tests/nowhere", "tests/nowhere: there is no such file or folder"),
        (no_end, "no_end has no end-of-sequence token"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_tokenizer(path)
        assert "\n" not in str(caught.value)


def test_a_model_whose_pieces_are_damaged_is_named(tmp_path: Path) -> None:
    train_sentencepiece(["def f(x):\n    return x  # é\n" * 4], 280, tmp_path)
    file = tmp_path / "tokenizer.model"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"<0x41>", b"\xe7\xff\xff\xff\xff>", 1))
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        load_tokenizer(file)


def test_what_has_no_hugging_face_form_because_it_is_damaged_is_no_error(tmp_path: Path) -> None:
    train_sentencepiece(["def f(x):\n    return x  # é\n" * 4], 280, tmp_path)
    whole = (tmp_path / "tokenizer.model").read_bytes()
    assert to_hugging_face(whole) is not None
    assert to_hugging_face(whole.replace(b"<unk>", b"<un\xe7\xe7", 1)) is None
