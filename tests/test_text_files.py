"Text in: encodings, frames, sizes, folders, books, windows, a vocabulary that grows, and one that was lost."

import io
import json
import os

import numpy as np
import pytest
from conftest import shared
from hypothesis import given, settings, strategies as st

from hrm.core import checkpoint
from hrm.core.config import ConfigError, checked_name, tree_hash
from hrm.core.device import seeded
from hrm.core.errors import DataError
from hrm.core.tokens import SPECIALS, CharacterTokenizer
from hrm.text import files
from hrm.text.data import DataConfig, build, draw_windows, grow, hold_out, load, load_book, translation, windows
from hrm.text.files import inspect, pieces, recover
from hrm.text.model import TextArch, about, build as build_model

FRENCH = (
    "Où est la clé « dorée » ? Zoé la perd, Léo l’a trouvée près de l’église ; ça arrive souvent, dit-il à sa mère.\n"
    * 30
)
GREEK = (
    "Ada βρήκε το λευκό αυγό κοντά στη θάλασσα· το αυγό πέφτει, λέει η Ada στον πατέρα της. Πού είναι η λάμπα;\n" * 30
)


@pytest.mark.parametrize(
    "text, encoding",
    [
        (FRENCH, "utf-8"),
        (FRENCH, "utf-8-sig"),
        (FRENCH, "utf-16"),
        (FRENCH, "utf-16-le"),
        (FRENCH, "utf-16-be"),
        (FRENCH, "utf-32"),
        (FRENCH, "cp1252"),
        (FRENCH, "mac-roman"),
        (GREEK, "utf-16"),
        (GREEK, "utf-16-le"),
        (GREEK, "cp1253"),
        (GREEK, "utf-8"),
    ],
)
@pytest.mark.parametrize("breaks", ["\n", "\r\n", "\r"])
def test_any_encoding_is_found_out_and_reads_back(tmp_path, text, encoding, breaks):
    (tmp_path / "t.txt").write_bytes(text.replace("\n", breaks).encode(encoding))
    source = inspect(tmp_path / "t.txt")
    assert "".join(pieces(source)) == text
    assert source.characters == len(text) and source.alphabet == set(text)
    assert source.files[0].newlines == (breaks,)


def test_a_stated_encoding_overrules(tmp_path):
    (tmp_path / "t.txt").write_bytes("é".encode("latin-1") * 500)
    assert "".join(pieces(inspect(tmp_path / "t.txt", "cp1251"))) == "й" * 500
    assert "".join(pieces(inspect(tmp_path / "t.txt", "latin-1"))) == "é" * 500
    (tmp_path / "m.txt").write_bytes("é".encode("utf-8-sig"))
    assert "".join(pieces(inspect(tmp_path / "m.txt", "utf-8"))) == "é"  # the mark is no character of the text


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(
        st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), include_characters="\n"), min_size=1, max_size=200
    ),
    piece=st.integers(1, 9),
)
def test_pieces_of_any_size_give_the_text(text, piece, tmp_path_factory):
    file = tmp_path_factory.mktemp("p") / "t.txt"
    file.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "PIECE", piece)
        assert "".join(pieces(inspect(file, "utf-8"))) == text.removeprefix("\ufeff")


def test_the_frame_is_found_wherever_the_pieces_end(tmp_path):
    story = "Once upon a time.\n\nThe end, my friend."
    whole = (
        "Header\n*** START OF THE PROJECT GUTENBERG EBOOK A ***\n\n"
        + story
        + "\n\nEnd of Project Gutenberg's A\n\n*** END OF THE PROJECT GUTENBERG EBOOK A ***\nlicence"
    )
    (tmp_path / "t.txt").write_text(whole, encoding="utf-8")
    for piece in range(5, 70):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "PIECE", piece)
            source = inspect(tmp_path / "t.txt")
            assert "".join(pieces(source)) == story, piece
    assert source.files[0].about()["frame_left_out"] == len(whole) - len(story)
    assert "left out" in source.summary()
    assert inspect(tmp_path / "t.txt", strip_gutenberg=False).characters == len(whole)


@pytest.mark.parametrize(
    "raw, encoding, why",
    [
        (b"", None, "an empty file"),
        (b"\xef\xbb\xbf", None, "no text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), None, "a binary file"),
        (bytes(range(256)) * 40, None, "a binary file"),
        (b"\x01\x02\x03 abc" * 100, None, "control characters"),
        ("é".encode("latin-1") * 100, "utf-8", "are not utf-8"),
        (b"abc", "utf-99", "encoding: found 'utf-99'"),
    ],
)
def test_what_is_no_text_is_refused_with_its_reason(tmp_path, raw, encoding, why):
    (tmp_path / "bad.bin").write_bytes(raw)
    with pytest.raises(DataError, match=why):
        inspect(tmp_path / "bad.bin", encoding)


def test_a_few_undecodable_places_are_read_and_said(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"all is well. " * 100 + b"\xff" + b"and ends well" * 10)
    source = inspect(tmp_path / "t.txt", "utf-8")
    assert source.files[0].replaced == 1 and "1 undecodable places" in source.summary()


def test_a_folder_is_one_book_and_says_what_it_passed_over(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "in" / "c.md").write_bytes("dritte Ä".encode("utf-16"))
    (tmp_path / "picture.png").write_bytes(bytes(50))
    (tmp_path / ".hidden").write_text("not this")
    source = inspect(tmp_path)
    assert "".join(pieces(source)) == "first\nsecond\ndritte Ä"
    assert len(source.skipped) == 1 and "picture.png" in source.summary()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x").write_bytes(bytes(9))
    with pytest.raises(DataError, match="no text among 1 files"):
        inspect(tmp_path / "none")
    with pytest.raises(DataError, match="no such file or folder"):
        inspect(tmp_path / "absent")


def test_no_character_of_a_long_book_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 1000)
    text = "".join(np.random.default_rng(0).choice(list("abc é\n"), 25_000))
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    facts = build(
        DataConfig(seed=0, books=(), characters=2000, held_out=0.1, sources=(str(tmp_path / "long.txt"),)),
        tmp_path / "out",
    )
    book = load(tmp_path / "out")["long"]
    assert book.text("train") + book.text() == text
    assert facts["long"]["characters"] == {"train": 22_500, "held_out": 2_500}
    assert isinstance(book.train, np.memmap) and book.train.dtype == np.uint16
    assert not any(tmp_path.glob("out/long/.*"))


def test_ids_beyond_two_bytes(tmp_path):
    alphabet = [chr(i) for i in range(0x20000, 0x20000 + 65_600)]
    (tmp_path / "wide.txt").write_text("".join(alphabet) * 2, encoding="utf-8")
    build(
        DataConfig(seed=0, books=(), characters=2000, held_out=0.1, sources=(str(tmp_path / "wide.txt"),)),
        tmp_path / "out",
    )
    book = load(tmp_path / "out")["wide"]
    assert book.train.dtype == np.uint32 and book.tokenizer.size == 65_600 + len(SPECIALS)
    assert book.text("train", 0, 65_600) == "".join(alphabet)


def test_books_are_the_same_bytes_and_two_of_a_name_are_refused(tmp_path):
    config = DataConfig(seed=3, books=("english", "greek"), characters=3000, held_out=0.1)
    build(config, tmp_path / "a"), build(config, tmp_path / "b")
    assert tree_hash(tmp_path / "a") == tree_hash(tmp_path / "b")
    (tmp_path / "english.txt").write_text("The same name. " * 200)
    with pytest.raises(DataError, match="two books of the name 'english'"):
        build(config.model_copy(update={"sources": (str(tmp_path / "english.txt"),)}), tmp_path / "c")
    assert not (tmp_path / "c").exists()
    (tmp_path / "a" / "greek" / "train.npy").unlink()
    with pytest.raises(DataError, match="greek"):
        load(tmp_path / "a")
    with pytest.raises(DataError, match="hrm text data"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize(
    "file, name",
    [
        ("my book.txt", "my_book"),
        ("alice_in-1865.txt", "alice_in-1865"),
        ("Zoé & Léo.txt", "Zoé_Léo"),
        ("a..b.txt", "a_b"),
        ("...txt", "book"),
        ("!!!.txt", "book"),
        ("-x.txt", "x"),
        ("_-_.txt", "book"),
        ("1.txt", "1"),
        (".hidden.txt", "hidden"),
        ("Über.txt", "book_Über"),
        ("Война и мир.txt", "book_Война_и_мир"),
        ("x" * 200 + ".txt", "x" * 100),
        ("a" + "я" * 90, "a" + "я" * 49),
        ("line\nbreak", "line_break"),
        (b"\xff.txt", "book"),
    ],
)
def test_any_file_name_gives_a_name_for_a_book(tmp_path, file, name):
    path = tmp_path / os.fsdecode(file)
    path.write_text("Some words. " * 50)
    assert inspect(path).name == name == checked_name(name, "book")


@pytest.mark.parametrize(
    "text, why",
    [
        ('{"order": ["../english"]}', 'line 1: order.0: found "../english"; allowed: a name'),
        ('{"order": [".."]}', 'order.0: found ".."; allowed: a name'),
        ('{"order": ["/english"]}', 'order.0: found "/english"'),
        ('{"order": [""]}', 'order.0: found ""'),
        ('{"order": [7]}', "order.0: found 7; allowed: a valid string"),
        ('{"order": "english"}', 'order: found "english"; allowed: a valid array'),
        ('{"older": ["english"]}', "order: missing key"),
        ("[]", "found [];"),
        ("{", "Expecting property name"),
        ("[" * 10**5, "recursion"),
        ('{"order": ["latin"]}', "latin/book.json: [Errno 2]"),
    ],
)
def test_an_order_of_books_that_cannot_be_is_one_line(tmp_path, text, why):
    build(DataConfig(seed=0, books=("english",), characters=2000, held_out=0.1), tmp_path / "books")
    (tmp_path / "books" / "books.json").write_text(text)
    with pytest.raises(DataError) as error:
        load(tmp_path / "books")
    assert why in str(error.value) and str(tmp_path / "books") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, why",
    [
        *(
            ({"name": wrong}, f"name: found {json.dumps(wrong)}; allowed: a name of letters")
            for wrong in ("..", "../x", "a/b", "/abs", "", ".hidden", "a..b", "-x", "x\0")
        ),
        ({"name": 7}, "name: found 7; allowed: a valid string"),
        ({"name": None}, "name: found null"),
        ({"characters": 5}, "characters: found 5"),
        ({"characters": {"train": "1800"}}, 'characters.train: found "1800"'),
        ({"rate": "low"}, 'rate: found "low"'),
        ({"floor": []}, "floor: found []"),
        (
            {"characters": {"train": 1, "held_out": 2}},
            "'held_out': 205} ids; allowed: what book.json says, {'train': 1, ",
        ),
    ],
)
def test_a_book_that_says_what_cannot_be_is_one_line(tmp_path, change, why):
    build(DataConfig(seed=0, books=("english",), characters=2000, held_out=0.1), tmp_path)
    file = tmp_path / "english" / "book.json"
    about = json.loads(file.read_text())
    for fine in ("a.b-c_1", "aü"):
        file.write_text(json.dumps(about | {"name": fine}))
        assert (load_book(file.parent).name, load_book(file.parent).about) == (fine, about | {"name": fine})
    file.write_text(json.dumps(about | change))
    with pytest.raises(DataError) as error:
        load_book(file.parent)
    assert why in str(error.value) and str(file.parent) in str(error.value) and "\n" not in str(error.value)
    file.write_text(json.dumps({key: value for key, value in about.items() if key not in change}))
    if set(change) & {"name", "characters"}:
        with pytest.raises(DataError, match=f"book.json: {list(change)[0]}: missing key"):
            load_book(file.parent)


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"books": ("latin",)}, "allowed: english, french, greek"),
        ({"books": ()}, "at least one book or source"),
        ({"books": ("english", "english")}, "each once"),
        ({"held_out": 1.0}, "held_out"),
    ],
)
def test_a_wrong_section_is_refused(changes, why):
    with pytest.raises(ValueError, match=why):
        DataConfig(**{"seed": 0, "books": ("english",), "characters": 3000, "held_out": 0.1} | changes)


def test_the_split_is_contiguous_and_never_empty():
    assert hold_out(1000, 0.1) == {"train": 900, "held_out": 100}
    with pytest.raises(DataError, match="allowed: enough for two parts"):
        hold_out(10, 0.05)


def test_windows_start_anywhere_and_end_inside():
    ids, rng = np.arange(12, dtype=np.uint16), np.random.default_rng(0)
    drawn = draw_windows(ids, 4000, 5, rng)
    assert sorted(set(drawn[:, 0])) == list(range(8))  # the last one too
    assert (np.diff(drawn, axis=1) == 1).all() and drawn.max() == 11
    assert np.abs(np.bincount(drawn[:, 0]) / 4000 - 1 / 8).max() < 0.03
    table = np.arange(12)[::-1]
    assert (windows(ids, [3], 5, table) == [[8, 7, 6, 5, 4]]).all()
    assert windows(ids, [], 5).shape == (0, 5)
    with pytest.raises(DataError):
        windows(ids, [8], 5)


@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4))
def test_a_vocabulary_grows_and_never_shrinks(texts):
    known = CharacterTokenizer(())
    for text in texts:
        own = CharacterTokenizer.train([text])
        larger = grow(known, own)
        assert larger.tokens[: len(known.tokens)] == known.tokens and set(larger.tokens) == set(known.tokens) | set(
            text
        )
        assert larger.decode(translation(own, larger)[own.encode(text)]) == text
        assert larger.encode("".join(known.tokens)) == known.encode("".join(known.tokens))
        known = larger


def test_a_lost_vocabulary_comes_back_from_a_models_checkpoint(tmp_path):
    tokenizer = CharacterTokenizer.train(["Zoé perd la clé."])
    model = build_model(
        TextArch(
            hidden_size=32, num_heads=2, H_layers=1, L_layers=1, H_cycles=1, L_cycles=1, expansion=2, halt_max_steps=1
        ),
        tokenizer.size,
        8,
        seeded(0),
    )
    checkpoint.write(tmp_path / "model", model.state_dict(), {"config": about(model, tokenizer), "step": 1})
    target = tmp_path / "tokenizer.json"
    target.write_text("first")
    assert recover(tmp_path / "model", target)["backup"].read_text() == "first"
    assert CharacterTokenizer(tuple(json.loads(target.read_text())["tokens"])) == tokenizer
    again = recover(tmp_path / "model", target)["backup"]
    assert again.name == "tokenizer.json.backup1" and (tmp_path / "tokenizer.json.backup").read_text() == "first"
    meta = json.loads((tmp_path / "model" / "meta.json").read_text())
    meta["config"]["tokenizer"]["tokens"] = meta["config"]["tokenizer"]["tokens"][:-1]
    (tmp_path / "model" / "meta.json").write_text(json.dumps(meta))
    before = target.read_bytes()
    with pytest.raises(ConfigError, match="as many rows as ids"):
        recover(tmp_path / "model", target)
    assert target.read_bytes() == before


def served(text: str, frame: bool = True):
    "An opener that gives a text as Project Gutenberg does."
    start, end = (
        "\ufeffThe Project Gutenberg eBook\r\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\r\n\r\n",
        "\r\n\r\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\r\n",
    )
    return lambda url: io.BytesIO(
        ((start if frame else "") + text.replace("\n", "\r\n") + (end if frame else "")).encode("utf-8")
    )


@pytest.mark.parametrize(
    "name, file", [("alice", "alice_in_wonderland.txt"), ("looking_glass", "through_the_looking_glass.txt")]
)
def test_the_alice_books_are_recognised_by_their_story(tmp_path, name, file):
    text = shared(f"data/text/{file}").read_text(encoding="utf-8")
    path = files.fetch(name, tmp_path, opener=served(text))
    assert path.read_text(encoding="utf-8").strip() == text.strip()
    with pytest.raises(DataError, match="another edition with --accept"):
        files.fetch(name, tmp_path, opener=served(text[:50_000] + text[50_000:].replace(" the ", " a ", 1)))
    assert path.read_text(encoding="utf-8").strip() == text.strip()  # what stood there is untouched
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}.txt"]


def test_real_books_grow_one_vocabulary(tmp_path):
    names = ("alice_in_wonderland", "through_the_looking_glass", "alice_fr")
    sources = tuple(str(shared(f"data/text/{name}.txt")) for name in names)
    build(DataConfig(seed=0, books=(), characters=2000, held_out=0.1, sources=sources), tmp_path)
    found, known = load(tmp_path), CharacterTokenizer(())
    assert list(found) == list(names)
    for book in found.values():
        known = grow(known, book.tokenizer)
        assert known.decode(book.ids(known)) == book.text()
    assert {"é", "à"} <= set(known.tokens[-(known.size - found[names[0]].tokenizer.size) :])
