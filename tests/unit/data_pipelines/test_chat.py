from pathlib import Path

import pytest

from data_pipelines.chat import encode_messages
from data_pipelines.show import decode_all
from data_pipelines.tokenize import HuggingFaceTokenizer, load_tokenizer, train_sentencepiece

PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% else %}{{ m.content }}</s>{% endif %}\n{% endfor %}"
)
COUNTING = "{{ messages | length }}:" + PLAIN
MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is 1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "And 2+2?"},
    {"role": "assistant", "content": "4"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["<user> <system> <assistant> What is 1 and 2? Be short."] * 50
    train_sentencepiece(texts, 290, folder)
    (folder / "tokenizer.model").unlink()  # so that it is the Hugging Face form that is loaded
    return folder


def with_template(folder: Path, template: str) -> HuggingFaceTokenizer:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    tokenizer.tokenizer.chat_template = template
    tokenizer.tokenizer.split_special_tokens = False
    return tokenizer


def pieces(tokenizer: HuggingFaceTokenizer, template: str) -> tuple[str, list[str]]:
    """The whole conversation, and the stretches of it that are learnt."""
    tokenizer.tokenizer.chat_template = template
    ids = encode_messages(tokenizer, MESSAGES)
    whole = decode_all(tokenizer, [~i if i < 0 else i for i in ids])
    learnt: list[list[int]] = [[]]
    for i in ids:
        if i >= 0:
            learnt[-1].append(i)
        elif learnt[-1]:
            learnt.append([])
    return whole, [decode_all(tokenizer, part) for part in learnt if part]


def test_what_a_turn_of_the_assistant_adds_is_learnt(folder: Path) -> None:
    tokenizer = with_template(folder, PLAIN)
    whole, learnt = pieces(tokenizer, PLAIN)
    assert whole == tokenizer.tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert learnt == ["2</s>\n", "4</s>\n"]


def test_a_template_that_marks_generation_says_itself_what_is_learnt(folder: Path) -> None:
    _, learnt = pieces(with_template(folder, MARKED), MARKED)
    assert learnt == ["2</s>", "4</s>"]


def test_a_template_that_words_beginnings_otherwise_is_refused(folder: Path) -> None:
    tokenizer = with_template(folder, COUNTING)
    with pytest.raises(ValueError, match=r"mark them in the template with \{% generation %\}"):
        encode_messages(tokenizer, MESSAGES)


def test_a_tokenizer_without_a_template_is_refused(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    with pytest.raises(ValueError, match="this tokenizer has none: take another"):
        encode_messages(tokenizer, MESSAGES)


def test_a_conversation_may_begin_with_the_assistant(folder: Path) -> None:
    tokenizer = with_template(folder, PLAIN)
    turns = [{"role": "assistant", "content": "1"}, *MESSAGES[1:3]]
    ids = encode_messages(tokenizer, turns)
    learnt = decode_all(tokenizer, [i for i in ids if i >= 0])
    assert learnt == "<assistant>1</s>\n2</s>\n"


def test_what_the_template_says_against_a_conversation_is_quoted(folder: Path) -> None:
    tokenizer = with_template(folder, "{{ raise_exception('no system role here') }}")
    with pytest.raises(ValueError, match=r"refuses a .*'system'.*: no system role here"):
        encode_messages(tokenizer, MESSAGES)
