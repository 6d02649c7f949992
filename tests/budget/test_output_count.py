"""An answer's tokens are counted from below by its text: no more than there are, and not much fewer."""

import json
import random
from pathlib import Path

import pytest
import regex

from automagik.budget import OutputCount

_SLACK = 64

# What GPT-4o's tokenizer makes of one sentence, and GPT-4's of the same, as OpenAI published it in May 2024.
SENTENCES = [
    ("Telugu", 45, 159, "నమస్కారము, నా పేరు జీపీటీ-4o. నేను ఒక్క కొత్త రకమైన భాషా మోడల్ ని. మిమ్మల్ని కలిసినందుకు సంతోషం!"),
    ("Tamil", 35, 116, "வணக்கம், என் பெயர் ஜிபிடி-4o. நான் ஒரு புதிய வகை மொழி மாடல். உங்களை சந்தித்ததில் மகிழ்ச்சி!"),
    ("Hindi", 31, 90, "नमस्ते, मेरा नाम जीपीटी-4o है। मैं एक नए प्रकार का भाषा मॉडल हूँ। आपसे मिलकर अच्छा लगा!"),
    ("Urdu", 33, 82, "ہیلو، میرا نام جی پی ٹی-4o ہے۔ میں ایک نئے قسم کا زبان ماڈل ہوں، آپ سے مل کر اچھا لگا!"),
    ("Arabic", 26, 53, "مرحبًا، اسمي جي بي تي-4o. أنا نوع جديد من نموذج اللغة، سررت بلقائك!"),
    ("Persian", 32, 61, "سلام، اسم من جی پی تی-۴او است. من یک نوع جدیدی از مدل زبانی هستم، از ملاقات شما خوشبختم!"),
    ("Russian", 23, 39, "Привет, меня зовут GPT-4o. Я — новая языковая модель, приятно познакомиться!"),
    ("Korean", 27, 45, "안녕하세요, 제 이름은 GPT-4o입니다. 저는 새로운 유형의 언어 모델입니다, 만나서 반갑습니다!"),
    ("Vietnamese", 30, 46, "Xin chào, tên tôi là GPT-4o. Tôi là một loại mô hình ngôn ngữ mới, rất vui được gặp bạn!"),
    ("Chinese", 24, 34, "你好，我的名字是GPT-4o。我是一种新型的语言模型，很高兴见到你!"),
    ("Japanese", 26, 37, "こんにちは、私の名前はGPT-4oです。私は新しいタイプの言語モデルです。初めまして！"),
    ("Turkish", 30, 39, "Merhaba, benim adım GPT-4o. Ben yeni bir dil modeli türüyüm, tanıştığımıza memnun oldum!"),
    ("Italian", 28, 34, "Ciao, mi chiamo GPT-4o. Sono un nuovo tipo di modello linguistico, piacere di conoscerti!"),
    ("German", 29, 34, "Hallo, mein Name is GPT-4o. Ich bin ein neues KI-Sprachmodell. Es ist schön, dich kennenzulernen."),
    ("Spanish", 26, 29, "Hola, me llamo GPT-4o. Soy un nuevo tipo de modelo de lenguaje, ¡es un placer conocerte!"),
    ("Portuguese", 27, 30, "Olá, meu nome é GPT-4o. Sou um novo tipo de modelo de linguagem, é um prazer conhecê-lo!"),
    ("French", 28, 31, "Bonjour, je m'appelle GPT-4o. Je suis un nouveau type de modèle de langage, c'est un plaisir de vous rencontrer!"),
    ("English", 24, 27, "Hello, my name is GPT-4o. I'm a new type of language model, it's nice to meet you!"),
]  # fmt: skip

# How OpenAI's tokenizers cut a text before they look for tokens, of which each piece is at least one: o200k, cl100k and GPT-2.
CUTS = [
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
]


def counted(text: str, *, seed: int = 7) -> OutputCount:
    """The count of a text that came in pieces."""
    chance, count, place = random.Random(seed), OutputCount(), 0
    while place < len(text):
        size = chance.randint(1, 12)
        count.add(text[place : place + size])
        place += size
    return count


@pytest.mark.parametrize(("new", "old", "sentence"), [row[1:] for row in SENTENCES], ids=[row[0] for row in SENTENCES])
def test_in_any_language_no_more_tokens_are_counted_than_there_are_and_over_half_of_them(
    new: int, old: int, sentence: str
) -> None:
    count = counted(f"{sentence} " * 100)
    assert new * 100 / 1.9 < count.fewest() + _SLACK <= new * 100 < old * 100
    assert not count.exceeds(new * 100)
    assert count.exceeds(new * 50)


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "src/automagik/gateway/call.py", "pyproject.toml"])
def test_of_prose_code_and_a_tool_s_arguments_no_more_tokens_are_counted_than_any_tokenizer_makes(name: str) -> None:
    text = (Path(__file__).parents[2] / name).read_text()
    pieces = [sum(1 for _ in regex.finditer(cut, text)) for cut in CUTS]
    for written in (text, json.dumps({"content": text}), json.dumps({"content": text}, ensure_ascii=False)):
        count = counted(written)
        assert not count.exceeds(min(pieces))
        assert 0.75 * pieces[0] < count.fewest() + _SLACK <= min(pieces) + 3  # and the words of the JSON
        assert count.bytes == len(written.encode())


def test_signs_that_make_few_tokens_are_counted_as_few_and_emoji_as_some() -> None:
    assert counted(("-" * 3000 + "\n" + " " * 3000 + "\n") * 20).fewest() < 1000
    emoji = counted("😀 ok 👨‍👩‍👧‍👦 👍🏽 " * 200)
    assert 600 < emoji.fewest() + _SLACK <= 800
    assert counted("你好，世界。" * 300).exceeds(500)  # without a space
    assert counted(json.dumps("你好，世界。" * 300)).fewest() == pytest.approx(
        counted("你好，世界。" * 300).fewest(), rel=0.2
    )


def test_nothing_is_counted_while_there_are_fewer_bytes_than_tokens_may_come() -> None:
    count = counted("a b c " * 100)
    assert not count.exceeds(600)
    assert count.exceeds(200)
    assert not count.exceeds(300)
    assert (count.bytes, count.usual(), OutputCount().fewest()) == (600, 300 - _SLACK, 0)
