"The text that decides what is stale: formatting, prose and Python's version leave it alone, everything else moves it."

import ast
import copy
import json
import random
from pathlib import Path

import pytest
from copies import ROOT
from hrm.core import closure as closures
from hrm.core.closure import closure, code_version, normalised, reached
from hrm.core.config import ConfigError
from hypothesis import given
from hypothesis import strategies as st

MODULES = sorted(path for path in (ROOT / "hrm").glob("*/*.py") if path.stat().st_size)
SAME = {  # two ways to write one thing
    "quotes": ("x = 'a\"b'", 'x = "a\\"b"'),
    "three quotes": ('x = "a\\nb"', 'x = """a\nb"""'),
    "a prefix without effect": ("x = u'a' + r'b'", "x = 'a' + 'b'"),
    "pieces of a string": ("x = 'a' 'b' \"c\"", "x = ('a'\n     'bc')"),
    "pieces of a string with values": ("x = f'{a}' 'b' f'c{d:>{n}}'", 'x = (f"{a}bc"\n     f"{d:>{n}}")'),
    "no value in it": ("x = f'a'", "x = 'a'"),
    "an empty format": ("x = f'{a:}'", "x = f'{a}'"),
    "parentheses": ("x = a + (b * c)", "x = ((a) + b * c)"),
    "a tuple's parentheses": ("x = 1, 2", "x = (1, 2,)"),
    "trailing commas": ("f(a, b=[1, 2], *c)", "f(\n    a,\n    b=[1, 2,],\n    *c,\n)"),
    "line breaks": ("x = a + b if c else d", "x = (\n    a +\n    b\n    if c else d)"),
    "semicolons": ("a = 1; b = 2", "a = 1\n\n\nb = 2"),
    "indentation": ("if a:\n  b()", "if a:\n\n        b()  # here"),
    "comments": ("a = 1", "# why\na = 1  # because\n# so"),
    "marks of cells": ("def f(): return 1", "#| export\n# %% ../../nbs/x.ipynb #1234\ndef f(): return 1"),
    "a module's docstring": ("import os", '"""Does things."""\nimport os'),
    "docstrings": (
        "class A:\n  x = 1\n  def f(self): return 2",
        'class A:\n  "A."\n  x = 1\n  "Of x."\n  def f(self):\n    "Two."\n    return 2',
    ),
    "a list of names": ("x = 1", '__all__ = ["x"]\n__version__ = "2"\nx = 1'),
    "numbers": ("x = 1_000, 0x10, 1e3", "x = 1000, 16, 1000.0"),
    "elif": ("if a: b()\nelif c: d()", "if a:\n  b()\nelse:\n  if c:\n    d()"),
    "letters outside ASCII": ('x = "\\u00e9\\u4e00"', 'x = "\u00e9\u4e00"'),
}
OTHER = {  # two things
    "a number": ("x = 1", "x = 2"),
    "a sign": ("x = 1", "x = -1"),
    "its type": ("x = 1", "x = 1.0"),
    "truth": ("x = 1", "x = True"),
    "text": ("x = 1", "x = '1'"),
    "bytes": ("x = '1'", "x = b'1'"),
    "nothing": ("return_ = None", "return_ = ..."),
    "infinity": ("x = 1e999", "x = inf"),
    "an operator": ("x = a + b", "x = a - b"),
    "an order of work": ("x = a + b * c", "x = (a + b) * c"),
    "a comparison": ("x = a < b", "x = a <= b"),
    "a chain": ("x = a < b < c", "x = (a < b) < c"),
    "a name": ("x = a", "x = b"),
    "an attribute": ("x = a.b", "x = a.c"),
    "an annotation": ("x: int = 1", "x: float = 1"),
    "an argument's annotation": ("def f(x: int): pass", "def f(x: float): pass"),
    "what is returned": ("def f() -> int: pass", "def f() -> None: pass"),
    "a default": ("def f(x=1): pass", "def f(x=2): pass"),
    "whose default": ("def f(*, x, y=None): pass", "def f(*, x=None, y): pass"),
    "kinds of arguments": ("def f(x, y): pass", "def f(x, *, y): pass"),
    "places of arguments": ("def f(x, y): pass", "def f(x, /, y): pass"),
    "a decorator": ("@a\ndef f(): pass", "@b\ndef f(): pass"),
    "order": ("a()\nb()", "b()\na()"),
    "a block": ("if x:\n  a()\nb()", "if x:\n  a()\n  b()"),
    "the end of a loop": ("for x in y:\n  a()\nelse:\n  b()", "for x in y:\n  a()\nb()"),
    "a keyword": ("f(a=b)", "f(b=b)"),
    "unpacking": ("x = {**a, 'b': c}", "x = {'b': c, **a}"),
    "stars": ("f(*a)", "f(**a)"),
    "a slice": ("x = a[1:]", "x = a[:1]"),
    "a format": ("x = f'{a:.2f}'", "x = f'{a:.3f}'"),
    "a conversion": ("x = f'{a!r}'", "x = f'{a}'"),
    "value or text": ("x = f'{a}'", "x = 'a'"),
    "braces": ("x = f'{a}'", "x = f'{{a}}'"),
    "an import": ("from a import b", "from a import b as c"),
    "its level": ("from .a import b", "from ..a import b"),
    "what is caught": ("try: a()\nexcept B: c()", "try: a()\nexcept D: c()"),
    "a pattern": ("match a:\n  case 1: b()", "match a:\n  case 1 | 2: b()"),
    "none as a pattern": ("match a:\n  case None: b()", "match a:\n  case True: b()"),
    "waiting": ("async def f(): await a()", "async def f(): a()"),
    "tuple or list": ("x = (1, 2)", "x = [1, 2]"),
    "one or a tuple of one": ("x = (1)", "x = (1,)"),
}


@pytest.mark.parametrize("one, other", SAME.values(), ids=SAME)
def test_the_same_in_other_words_is_the_same_text(one, other):
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize("one, other", OTHER.values(), ids=OTHER)
def test_something_else_is_another_text(one, other):
    assert normalised(one) != normalised(other)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_formatter_moves_nothing(path):
    source = path.read_text(encoding="utf-8")
    assert normalised(ast.unparse(ast.parse(source))) == normalised(source)


def later(tree: ast.AST) -> ast.AST:
    "A tree as a later Python has it: functions and classes know type parameters, empty fields are absent, strings are cut elsewhere."
    tree = copy.deepcopy(tree)
    for node in ast.walk(tree):
        for name, value in list(ast.iter_fields(node)):
            if (
                value == []
                and not isinstance(node, (ast.List, ast.Tuple, ast.Dict, ast.JoinedStr))
                or value is None
                and not isinstance(node, (ast.Constant, ast.MatchSingleton))
            ):
                delattr(node, name)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            node._fields = (*node._fields, "type_params")
            node.type_params = []
        if isinstance(node, ast.JoinedStr):
            node.values = [
                piece
                for one in node.values
                for piece in (
                    [ast.Constant(part) for part in (*one.value, "")] if isinstance(one, ast.Constant) else [one]
                )
            ]
    return tree


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_another_version_of_python_moves_nothing(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert closures._statements(later(tree).body) == closures._statements(tree.body)


def changed(node: ast.AST) -> bool:
    "Change one constant, name or operator in place; False where there is nothing to change."
    if isinstance(node, ast.Constant):
        kinds = {
            bool: lambda v: not v,
            int: lambda v: v + 1,
            float: lambda v: v + 0.5,
            str: lambda v: v + "x",
            bytes: lambda v: v + b"x",
        }
        if type(node.value) not in kinds:
            return False
        node.value = kinds[type(node.value)](node.value)
    elif isinstance(node, ast.Name):
        node.id += "_"
    elif isinstance(node, (ast.Attribute, ast.keyword)) and isinstance(
        getattr(node, "attr", getattr(node, "arg", None)), str
    ):
        setattr(node, "attr" if isinstance(node, ast.Attribute) else "arg", "other")
    elif isinstance(node, ast.arg):
        node.arg += "_"
    elif isinstance(node, ast.BinOp):
        node.op = ast.MatMult() if not isinstance(node.op, ast.MatMult) else ast.Add()
    elif isinstance(node, ast.Compare):
        node.ops = [ast.IsNot() if not isinstance(node.ops[0], ast.IsNot) else ast.Is(), *node.ops[1:]]
    else:
        return False
    return True


def test_every_constant_name_and_operator_counts():
    draw, tried = random.Random(0), 0
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        whole = closures._statements(tree.body)
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)} | {
            id(inside)
            for node in tree.body
            if isinstance(node, ast.Assign) and closures._is_prose(node)
            for inside in ast.walk(node)
        }
        nodes = [node for node in ast.walk(tree) if id(node) not in prose]
        for node in draw.sample(nodes, min(12, len(nodes))):
            kept = dict(node.__dict__)
            if changed(node):
                assert closures._statements(tree.body) != whole, (path, ast.dump(node))
                tried += 1
            node.__dict__.update(kept)
    assert tried > 200


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, min_value=0) | st.text() | st.binary()


@given(plain, plain)
def test_constants_are_told_apart(one, other):
    text = closures._expression(ast.Constant(one))
    assert text.isascii() and "\n" not in text
    same = type(one) is type(other) and one == other
    assert (closures._expression(ast.Constant(other)) == text) == same


def write(folder: Path, **files: str) -> Path:
    "A scratch package: name with two underscores for each dot -> source."
    for name, text in files.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_constant_three_imports_away_counts_and_a_docstring_does_not(tmp_path):
    write(
        tmp_path,
        hrm__a="from . import b",
        hrm__b="def f():\n  from hrm.sub import c",
        hrm__sub__c="from ..d import x",
        hrm__d='"Prose."\nx = 1',
        hrm__other="x = 1",
    )
    (tmp_path / "hrm/__init__.py").write_text("")
    cells = ("import hrm.a",)
    before = closure(*cells, folder=tmp_path)
    assert reached(["hrm.a"], tmp_path) == ["hrm.a", "hrm.b", "hrm.d", "hrm.sub.c"]
    write(tmp_path, hrm__d='"Better prose."\nx = (\n  1  # one\n)', hrm__other="x = 2", hrm__new="x = 3")
    assert closure(*cells, folder=tmp_path) == before
    write(tmp_path, hrm__d="x = 2")
    told = [line for line in closure(*cells, folder=tmp_path).splitlines() if line not in before.splitlines()]
    assert told == ["Assign(targets=[x], value=2)"]
    (tmp_path / "hrm/sub/__init__.py").write_text("import os")
    assert "hrm.sub" in reached(["hrm.a"], tmp_path)


def test_cells_of_a_chapter_are_told_apart():
    assert closure("a = 1\nb = 2") != closure("a = 1", "b = 2")
    assert closure("f()") != closure("f();")
    assert closure("%matplotlib inline") != closure("%matplotlib agg")
    assert closure("f()", "# remark", '"text"') == closure("f()")


def test_a_circle_ends(tmp_path):
    write(tmp_path, hrm__a="import hrm.b", hrm__b="import hrm.a")
    assert reached(["hrm.a"], tmp_path) == ["hrm.a", "hrm.b"]


def test_every_chapter_has_a_closure():
    for path in sorted((ROOT / "nbs" / "chapters").glob("*.ipynb")):
        cells = [
            "".join(cell["source"])
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "code"
        ]
        assert "# hrm.core.config\n" in closure(*cells), path.name


def test_the_code_of_a_training_is_what_it_reaches():
    assert code_version("hrm.sudoku.train") != code_version("hrm.sudoku.evaluate")
    assert "hrm.core.plots" not in reached(["hrm.core.layers"])
    with pytest.raises(ConfigError, match="allowed: a module of hrm"):
        code_version("hrm.sudoku.nowhere")
