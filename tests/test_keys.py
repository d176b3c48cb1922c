"""Keys: an edit renews what it can change, and nothing else; on every Python that we support."""

import ast
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import reach
from pydantic import BaseModel

from lib import config, stats, store
from lib.sae import training
from lib.store import keys

# ------------------------------------------------------------- the table of edits, on a package of the same shapes as lib

PACKAGE = {
    "lib/texts/sources.py": '''
        """Rows and parsers."""
        from collections.abc import Callable
        from dataclasses import dataclass
        from lib import store

        @dataclass(frozen=True)
        class Source:
            wheel: str
            parser: Callable[..., list]

        def _cleaned(text):
            return text.strip()  # of blanks

        def parse_csv(text):
            """Lines of a table."""
            return [_cleaned(line) for line in text.split(",")]

        def parse_text(text):
            return [text]

        TABLE = {"harmful": Source("one", parse_csv), "benign": Source("two", parse_text)}

        @store.cached
        def rows(out, source: Source):
            (out / "x").write_text(str(source.parser(source.wheel)))
    ''',
    "lib/sae/penalties.py": '''
        """Penalties."""
        from dataclasses import dataclass

        class Penalty:
            def of(self, omega):
                raise NotImplementedError

        @dataclass(frozen=True)
        class L0(Penalty):
            def of(self, omega):
                return omega.sum()

        @dataclass(frozen=True)
        class QuadraticFrequency(Penalty):
            omega0: float
            def of(self, omega):
                return (omega * (1 + omega / self.omega0)).sum()
    ''',
    "lib/sae/kernels.py": '''
        """Loops."""
        CHUNKS = 8

        def decode(rows):
            return rows[:CHUNKS]

        def unused(rows):
            return rows
    ''',
    "lib/sae/variants.py": '''
        """Architectures."""
        from dataclasses import dataclass
        from lib.sae import kernels
        from lib.sae.penalties import L0, Penalty

        @dataclass(frozen=True)
        class SAEConfig:
            variant: str
            penalty: Penalty = L0()

        class SAE:
            """Base."""
            def decode(self, f):
                return kernels.decode(f)

        class TopK(SAE):
            def encode(self, x):
                return sorted(x)

        VARIANTS = {"topk": TopK}

        def make(config):
            return VARIANTS[config.variant]()
    ''',
    "lib/sae/training.py": '''
        """Training."""
        from lib import store
        from lib.sae.variants import SAEConfig, make

        def _together(config, rows):
            return rows

        @store.together(_together)
        def train(jobs, config: SAEConfig, rows):
            return [make(job.arguments["config"]) for job in jobs]
    ''',
    "lib/probes/views.py": '''
        """Views."""
        from __future__ import annotations
        from dataclasses import dataclass
        from typing import TYPE_CHECKING
        from lib.sae.variants import make
        if TYPE_CHECKING:
            from lib.store import Artifact

        class View:
            def matrix(self, data):
                raise NotImplementedError

        @dataclass(frozen=True)
        class Residual(View):
            place: int
            def matrix(self, data):
                return data[self.place]

        @dataclass(frozen=True)
        class Latents(View):
            sae: Artifact
            def matrix(self, data):
                return make(self.sae).encode(data)
    ''',
    "lib/probes/methods.py": '''
        """Probes."""
        from dataclasses import dataclass
        import lib.probes.views as seen
        from lib import store

        TIE, TURNS = 1e-6, 3

        class Probe:
            def fit(self, x):
                raise NotImplementedError

        @dataclass(frozen=True)
        class Logistic(Probe):
            penalties: tuple
            def fit(self, x):
                return [p for p in self.penalties if p > TIE]

        @dataclass(frozen=True)
        class DifferenceOfMeans(Probe):
            def fit(self, x):
                return x[1] - x[0]

        @store.apart
        def fit(out, probe: Probe, view: seen.View, data):
            (out / "x").write_text(str(probe.fit(view.matrix(data))))
    ''',
    "lib/probes/tables.py": '''
        """Tables."""
        from lib import store

        @store.result
        def table(fits):
            return [(fit.path / "x").read_text() for fit in fits]
    ''',
    "lib/figures.py": '''
        """Figures."""
        def forest(rows):
            return f"a caption of {rows}"
    ''',
    "lib/claims.py": '''
        """Claims."""
        from lib.probes import tables
        ROWS = {"B1": "dense probes are near perfect"}
    ''',
}
RECIPES = """
    from lib.probes import methods, tables, views
    from lib.sae import penalties, training, variants
    from lib.texts import sources

    rows = {name: sources.rows(sources.TABLE[name]) for name in ("harmful", "benign")}
    saes = {
        "l0": training.train(variants.SAEConfig("topk"), rows["benign"]),
        "qf": training.train(variants.SAEConfig("topk", penalties.QuadraticFrequency(0.1)), rows["benign"]),
    }
    latents, logistic = views.Latents(saes["qf"]), methods.Logistic((1.0,))
    fits = {
        "dense": methods.fit(logistic, views.Residual(0), rows["harmful"]),
        "means": methods.fit(methods.DifferenceOfMeans(), views.Residual(0), rows["harmful"]),
        "latents": methods.fit(logistic, latents, rows["harmful"]),
    }
    found = rows | saes | fits | {"table": tables.table(list(fits.values()))}
    KEYS = {name: recipe.key for name, recipe in found.items()}
"""
ALL = {"harmful", "benign", "l0", "qf", "dense", "means", "latents", "table"}
FITS, SAES = {"dense", "means", "latents"}, {"l0", "qf"}
READS_SAES = {"latents", "table"}  # and nothing else does

# name: (file, what stands there, what stands there after the edit ("" appends), what is renewed)
EDITS: dict[str, tuple[str, str, str, set[str]]] = {
    "a source's row": ("texts/sources.py", "TABLE = {", 'TABLE = {"new": Source("three", parse_csv), ', set()),
    "another row's wheel": ("texts/sources.py", '"two"', '"zwei"', ALL - {"harmful", "dense", "means"}),
    "a new probe": ("probes/methods.py", "", "class Mine(Probe):\n    def fit(self, x):\n        return x\n", set()),
    "a new view": ("probes/views.py", "", "class Mine(View):\n    def matrix(self, data):\n        return 1\n", set()),
    "a new penalty": (
        "sae/penalties.py",
        "",
        "class Mine(Penalty):\n    def of(self, omega):\n        return 1\n",
        set(),
    ),
    "a new module": ("probes/changes.py", "", "from lib.probes import methods\nclass Shuffled:\n    pass\n", set()),
    "a claim": ("claims.py", "ROWS = {", 'ROWS = {"B2": "another", ', set()),
    "a figure": ("figures.py", "", "def curves(rows):\n    return rows\n", set()),
    "a caption": ("figures.py", "a caption", "another caption", set()),
    "a comment": ("texts/sources.py", "# of blanks", "# of all blanks", set()),
    "a docstring": ("texts/sources.py", '"""Lines of a table."""', '"""Rows of a table.\n\n    More."""', set()),
    "a new docstring": ("texts/sources.py", "    return [text]", '    """The whole."""\n    return [text]', set()),
    "a class's docstring": ("sae/variants.py", '"""Base."""', '"""What all have."""', set()),
    "a module's docstring": ("sae/variants.py", '"""Architectures."""', "", set()),
    "formatting": (
        "texts/sources.py",
        'text.split(",")]',
        "(\n        text.split(\n            ',',\n        )\n    )]",
        set(),
    ),
    "order of definitions": ("sae/kernels.py", "CHUNKS = 8\n", "\n\n", set()),  # moved below, see edit()
    "what no step names": ("sae/kernels.py", "    return rows\n", "    return list(rows)\n", set()),
    "an import for checking types": ("probes/views.py", "import Artifact", "import Artifact, Store", set()),
    "a setting of config": ("config.py", "", "MORE = 1\n", set()),
    "the store": ("store/store.py", "", "MORE = 1\n", set()),
    "a parser": ("texts/sources.py", "return [text]", "return [text, text]", {"benign"} | SAES | READS_SAES),
    "what a parser calls": ("texts/sources.py", "strip()", "lstrip()", {"harmful", "table"} | FITS),
    "one probe": ("probes/methods.py", "x[1] - x[0]", "x[0] - x[1]", {"means", "table"}),
    "a constant of one probe": ("probes/methods.py", "1e-6, 3", "1e-5, 3", {"dense", "latents", "table"}),
    "the base of probes": ("probes/methods.py", "raise NotImplementedError", "return None", FITS | {"table"}),
    "one view": ("probes/views.py", "data[self.place]", "data[-1]", {"dense", "means", "table"}),
    "one penalty": ("sae/penalties.py", "1 + omega", "2 + omega", {"qf"} | READS_SAES),
    "a method of SAE": ("sae/variants.py", "kernels.decode(f)", "kernels.decode(-f)", SAES | READS_SAES),
    "a kernel": ("sae/kernels.py", "rows[:CHUNKS]", "rows[1:CHUNKS]", SAES | READS_SAES),
    "a constant of a kernel": ("sae/kernels.py", "CHUNKS = 8", "CHUNKS = 9", SAES | READS_SAES),
    "a new architecture": ("sae/variants.py", "VARIANTS = {", 'VARIANTS = {"mine": SAE, ', SAES | READS_SAES),
    "what a module does on import": ("sae/kernels.py", "", "CHUNKS.bit_length()\n", SAES | READS_SAES),
    "a constant changed on import": ("sae/kernels.py", "", "if CHUNKS:\n    CHUNKS = 7\n", SAES | READS_SAES),
    "the step itself": ("probes/tables.py", "read_text()", "read_text().strip()", {"table"}),
}
DRIVER = """
import importlib, json, pathlib, sys
folder, edits = pathlib.Path(sys.argv[1]), json.loads(sys.stdin.read())
sys.path.insert(0, str(folder))
found = {}
for name, changed in edits.items():
    before = {path: (folder / path).read_text() if (folder / path).exists() else None for path in changed}
    for path, text in changed.items():
        (folder / path).write_text(text)
    for module in [m for m in sys.modules if m.split(".")[0] in ("lib", "recipes")]:
        del sys.modules[module]
    importlib.invalidate_caches()
    found[name] = importlib.import_module("recipes").KEYS
    for path, text in before.items():
        (folder / path).unlink() if text is None else (folder / path).write_text(text)
print(json.dumps(found))
"""


def run(command: list[str], **more: Any) -> str:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", **more.pop("env", {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy_what_the_store_imports(folder: Path) -> None:
    (folder / "data").mkdir()
    for name in ("lib/__init__.py", "lib/config.py", "lib/cpu.py", "data/profiles.yaml", "data/rewritten.json"):
        shutil.copy(config.ROOT / name, folder / name)


@pytest.fixture(scope="module")
def renewed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What each edit renews, in a copy of our store beside a package of lib's shapes."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(config.ROOT / "lib" / "store", folder / "lib" / "store")
    copy_what_the_store_imports(folder)
    for path, text in {**PACKAGE, "recipes.py": RECIPES}.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(textwrap.dedent(text).lstrip())
    edits: dict[str, dict[str, str]] = {"": {}}
    for name, (path, old, new, _) in EDITS.items():
        text = (folder / "lib" / path).read_text() if (folder / "lib" / path).exists() else ""
        assert text.count(old) == 1 or not old, f"{name}: {text.count(old)} times"
        after = text.replace(old, new) if old else text + new
        edits[name] = {f"lib/{path}": after + ("CHUNKS = 8\n" if name == "order of definitions" else "")}
        assert after != text
    found = json.loads(run([sys.executable, "-c", DRIVER, str(folder)], input=json.dumps(edits), cwd=folder))
    assert set(found[""]) == ALL and len(set(found[""].values())) == len(ALL)
    return {name: {n for n in ALL if each[n] != found[""][n]} for name, each in found.items()}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_renews_what_it_can_change_and_nothing_else(edit: str, renewed: dict[str, set[str]]) -> None:
    assert renewed[edit] == EDITS[edit][3]


# ------------------------------------------------------------------------------------------------------------ our lib


def names(module: str, name: str) -> set[str]:
    return set(keys.reached(module, name))


def test_code_follows_names_across_rooms() -> None:
    found = names("lib.sae.training", "train")
    assert {
        "lib.sae.training.train",
        "lib.sae.variants.SAE",
        "lib.sae.variants.VARIANTS",
        "lib.sae.kernels.decode",
    } <= found
    assert not {n for n in found if n.split(".")[1] in ("claims", "figures", "probes", "texts", "store", "config")}


def test_a_name_that_lib_does_not_define_reaches_nothing() -> None:
    assert keys.reached("lib.sae.training", "torch") == {} == keys.reached("lib.nowhere", "x")


def test_keys_are_of_the_code_as_it_was_imported(renewed: dict[str, set[str]], tmp_path: Path) -> None:
    """The files on disk may change while a process runs the old ones."""
    for name in ("store", "sae"):
        shutil.copytree(config.ROOT / "lib" / name, tmp_path / "lib" / name)
    copy_what_the_store_imports(tmp_path)
    script = """
        import pathlib
        from lib.store import keys
        path = pathlib.Path("lib/sae/adam.py")
        text = path.read_text()
        path.write_text(text + "\\n\\nclass Adam:\\n    pass\\n")
        then = keys.reached("lib.sae.adam", "Adam")
        path.write_text(text)
        print(len(then), then == keys.reached("lib.sae.adam", "Adam"), keys._SOURCES["lib.sae.adam"] == text)
    """
    out = run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert out.split()[1:] == ["True", "True"]


# ---------------------------------------------------------------------------------------------------------- the trees

ODD = '''
"""A module of what trees differ in between Pythons."""
from __future__ import annotations
async def wait(x, /, *, y: int = 1, **more) -> list[int]:
    """Awaits."""
    async with x as z:
        return [await w async for w in z if (v := w)]
def texts(width, é="\U0001fae8\\N{BULLET}", raw=r"\\d", old=u"u", data=b"\\x00"):
    return f"{width!r:>{width}}" f"{{}}" "a" f"{width=}" f"" + f\'\'\'{width:%Y-%m}
    {"nested " + f"{width}"}\'\'\' + f"{width:{width}.{width}}"
class Empty:
    """Nothing."""
class Other(Empty, metaclass=type):
    x: int
    y: str = "y"
    ...
def match(x):
    match x:
        case {"a": [1, *rest], **more} if rest: return more
        case Other(x=None) | -1.5 | 2j: pass
        case str() as text: return text
    try: return x[1:2, ..., ::3]
    except* (ValueError, TypeError) as error: raise x from error
    finally: del x
number = 10_000_000_000_000_000_000_000, 1e400, 0x_ff, 1_0.5
lambda *a, b=None, **c: (yield)
'''
ALONE = """
import sys, types, json, pathlib
class BaseModel: pass
for name, members in {"pydantic": {"BaseModel": BaseModel}, "lib": {}, "lib.config": {"ROOT": pathlib.Path(sys.argv[1])}}.items():
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)
sys.modules["lib"].config = sys.modules["lib.config"]
keys = types.ModuleType("keys")
sys.modules["keys"] = keys
exec(compile(pathlib.Path(sys.argv[1], "lib/store/keys.py").read_text(encoding="utf-8"), "keys.py", "exec"), vars(keys))
found = {f"{m}.{n}": keys.digest([m, n, sorted(keys.reached(m, n).items())]) for m in keys._SOURCES for n in keys._room(m).code}
odd = keys.room(sys.stdin.read())
found |= {n: keys.digest([keys.bare(nodes), sorted(keys.uses(nodes))]) for n, nodes in odd.code.items()}
print(json.dumps([sys.version_info[:2], found]))
"""


def interpreter(wanted: str) -> str | None:
    """A Python of this version, on the path or one of pyenv's."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [str(path) for path in versions.glob(f"{wanted}.*/bin/python")]
    for path in [shutil.which(f"python{wanted}"), *found]:
        if path and not subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode:
            return path
    return None


@pytest.mark.parametrize("wanted", ["3.11", "3.12", "3.13"])
def test_trees_are_the_same_on_every_python(wanted: str) -> None:
    """All of lib, and what trees differ in; by the standard library alone, so any Python there is can take part."""
    path = interpreter(wanted)
    if path is None:
        pytest.skip(f"there is no Python {wanted} on the path or among pyenv's")
    (here, ours), (there, theirs) = (
        json.loads(
            run(
                [each, "-I", "-c", ALONE, str(config.ROOT)],
                input=ODD,
                env={"PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"},
            )
        )
        for each in (sys.executable, path)
    )
    assert here == list(sys.version_info[:2]) and ".".join(map(str, there)) == wanted
    assert len(ours) > 400 and {"wait", "texts", "number", ""} <= set(ours)
    assert {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)} == set()


def tree(text: str) -> Any:
    return keys.bare(ast.parse(textwrap.dedent(text)).body)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f():\n    return '#1'", '"""Doc."""\n\ndef f():\n    """Says."""\n    return ("#1")  # one\n'),
        ("async def f():\n    await x", "async def f():\n    '''Waits.'''\n    await x"),
        ("class A:\n    pass", "class A:\n    '''Nothing.'''"),
        ("class A:\n    x = 1", "class A:\n    x = 1\n    '''What x is.'''"),
        ("x = u'a' 'b'", 'x = ("a"\n  "b")'),
    ],
)
def test_a_bare_tree_leaves_out_what_does_nothing(one: str, other: str) -> None:
    assert tree(one) == tree(other)


@pytest.mark.parametrize(
    "other", ["return '#2'", "return None", "return b'#1'", "yield '#1'", "return f'#1'", "''; return 1"]
)
def test_a_bare_tree_keeps_what_does_something(other: str) -> None:
    assert tree("def f(): return '#1'") != tree(f"def f(): {other}")


def uses(text: str) -> set[str]:
    return {".".join(use) for use in keys.uses(ast.parse(textwrap.dedent(text)).body)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(x, *y, z=a, **w): b = x + c; return b, d.e.f(y, z, w)", {"a", "c", "d.e.f"}),
        ("@a.b\nclass C(d, metaclass=e):\n    x: g = h\n    def m(self, x: i) -> j: return k(x)", {*"deghijk", "a.b"}),
        ("def f():\n    global a\n    a = 1", {"a"}),
        ("def f():\n    def g(x): return x + a\n    return g(x)", {"x", "a"}),
        ("def f(): return [x for x in xs if x.a(y) for y in x]", {"xs"}),
        ("def f(): return [x for x in x]", {"x"}),
        ("def f(): return {k: v for k, v in a.items()}, (lambda x, y=b: x + c)", {"a.items", "b", "c"}),
        ("def f():\n    with a as b, c() as (d, e): return b, d, e", {"a", "c"}),
        ("def f():\n    try: a()\n    except b as e: raise e", {"a", "b"}),
        ("def f(x):\n    match x:\n        case a.B(y=z, w=[*r]) as t: return z, r, t", {"a.B"}),
        ("def f():\n    for i, (j, k) in a: b = i + j + k\n    else: (c := b)\n    return c", {"a"}),
        ("async def f():\n    async for x in a: await x.b()", {"a"}),
        ("def f(): return a().b.c, d[0].e", {"a", "d"}),
        ("def f():\n    import a\n    return a.b", {"a.b"}),  # not followed inside functions, but not lost either
    ],
)
def test_names_are_those_that_come_from_outside(text: str, expected: set[str]) -> None:
    assert uses(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a, (b, *c) = d", {"a", "b", "c"}),
        ("a: int = 1\nb: str", {"a", "b"}),
        ("a = 1\na += 2", {"a"}),
        ("a = b = 1", {"a", "b"}),
        ("a = [x for x in b]", {"a", "x"}),  # more than is bound, but the same on every Python
        ("a = f(b)", {"a"}),
        ("a = {}\na['k'] = 1\nb.c = 2", {"a", ""}),
        ("def f(): pass\nasync def g(): pass\nclass A:\n    def h(self): x = 1", {"f", "g", "A"}),
        ("if a:\n    def f(): pass\nelse:\n    f = None", {"f", ""}),
        ("try:\n    import a\nexcept ImportError:\n    a = None", {"a", ""}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import b", set()),
        ("import typing as t\nif t.TYPE_CHECKING:\n    import a", set()),
        ("'''Doc.'''\nfrom a import b\nimport c.d", set()),
        ("print(1)", {""}),
        ("with a as b:\n    c = 1", {"b", "c", ""}),
    ],
)
def test_a_module_knows_what_defines_its_names(text: str, expected: set[str]) -> None:
    assert set(keys.room(text).code) == expected


def test_both_places_count_where_a_name_is_defined_twice() -> None:
    assert len(keys.room("a = 1\na += 2\nif a:\n    a = 3\n").code["a"]) == 3


def test_imported_names_are_followed_in_every_form() -> None:
    found = keys.room(
        "import a.b\nimport a.c as d\nfrom a import e as f, g\ntry:\n    from h import i\nexcept X:\n    from j import i"
    )
    assert found.imports == {"a": ["a"], "d": ["a.c"], "f": ["a.e"], "g": ["a.g"], "i": ["h.i", "j.i"]}


@pytest.mark.parametrize(
    "text",
    [
        "import lib.sae.variants\ndef f(): return lib.sae.variants.make(1)",
        "import lib.sae.variants as v\ndef f(): return v.make(1)",
        "from lib import sae\ndef f(): return sae.variants.make",
        "from lib.sae import variants\ndef f(x=variants.make): return x",
        "from lib.sae.variants import make as made\n@made\ndef f(): pass",
        "from lib.sae.variants import make\nclass f(make): pass",
        "from lib.sae.variants import make\nclass f:\n    x: make",
        "from lib.sae.variants import make\ng, h = make, 1\ndef f(): return h",
        "from lib.sae.variants import make\nh = 1\nh += make\ndef f(): return h",
        "from lib.sae.variants import make\nmake(1)\ndef f(): pass",
        "from lib.sae.variants import make\nclass f:\n    make = staticmethod(make)",
        "from lib.sae.variants import make\nclass f:\n    make: object = field(default_factory=make)",
        "from lib.sae.variants import make\nclass f:\n    @make\n    def x(self): ...\n    def make(self): ...",
        "from lib.sae.variants import make\nT = {'k': []}\nT['k'] += [make(x) for x in (1, 2)]\ndef f(): return T",
        "from lib.sae.variants import make\nclass C: ...\nC.t: list = [make(x) for x in (1, 2)]\ndef f(): return C",
        "from lib.sae.variants import make\nK = make\nif D: K = less(K)\nfor x in K: R[x] = 1\ndef f(): return R",
        "from lib.sae.variants import make\ndef f():\n    n = 0\n    def g():\n        nonlocal n\n        n = make\n    g()",
    ],
)
def test_a_definition_is_reached_however_it_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(keys._SOURCES, "lib.made_up", text)
    keys._room.cache_clear()
    keys._definition.cache_clear()
    assert "lib.sae.variants.make" in keys.reached("lib.made_up", "f")
    keys._room.cache_clear()
    keys._definition.cache_clear()


# ------------------------------------------------------------------------------------------ what steps really call


@store.cached
def trained(out: Path) -> None:
    (out / "log.json").write_text('[{"step": 1.0}]')


def test_a_step_of_lib_stays_within_its_reach(empty_store: store.Store) -> None:
    """As every step does that a test of any room computes."""
    assert training.log(trained()).value == [{"step": 1.0}]


def test_a_call_outside_of_the_reach_is_noticed(empty_store: store.Store) -> None:
    told = pytest.raises(AssertionError, match=r"training.log calls what its key does not follow: lib.stats.texts$")
    with told, reach.traced([training.log(trained())]):
        stats.texts(2, 1, 0)


def test_code_is_known_by_the_definition_that_it_stands_in() -> None:
    assert reach.definitions(stats.texts.__code__) == ["lib.stats.texts"]
    inner = [x for x in keys.canonical.__code__.co_consts if hasattr(x, "co_name")]
    assert inner and reach.definitions(inner[0]) == []  # the store is left out
    method = training.Trainee.advance.__code__
    assert reach.definitions(method) == ["lib.sae.training.Trainee"]
    assert reach.definitions(test_code_is_known_by_the_definition_that_it_stands_in.__code__) == []


# ------------------------------------------------------------------------------------- what stands outside of lib

number = itertools.count()


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Run a text as a notebook's cells, or a reader's script, are run."""

    def run_cells(text: str) -> ModuleType:
        path = tmp_path / f"cells_{next(number)}.py"
        path.write_text(textwrap.dedent(text))
        spec = importlib.util.spec_from_file_location("cells", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "cells", module)
        spec.loader.exec_module(module)
        return module

    return run_cells


CELL = """
    import math
    import numpy as np
    from dataclasses import dataclass
    from functools import cache, cached_property
    from numpy import log
    from lib.sae import kernels, penalties
    from lib.sae.variants import SAE
    N, NAMES, UNUSED = 3, {"a": [1, 2.5, None]}, 7
    TAKEN = frozenset({"b", "a"})
    Rule = dict[str, int] | None
    class Base:
        scale = 2
        def shift(self, x):
            return x + N
    @dataclass(frozen=True, order=True)
    class Mine(Base):
        factor: int = 1
        @property
        def twice(self):
            return 2 * self.factor
        @cached_property
        def thrice(self):
            return 3 * self.factor
        @staticmethod
        def known(x):
            return x
        @classmethod
        def made(cls):
            return cls(4)
        def of(self, x):
            '''Docstring.'''
            return super().shift(x)  # comment
    @cache
    def helper(x):
        return x * N
    def even(n):
        return n == 0 or odd(n - 1)
    def odd(n):
        return n != 0 and even(n - 1)
    def outer(k):
        def inner(x: Rule) -> Base:
            x = [x for x in (k, x)]
            return helper(x), log, kernels.decode, math.pi, NAMES, TAKEN, even(1), np.zeros(UNNAMED) if x else 0
        return inner
    step = outer(5)
"""


@pytest.mark.parametrize(
    ("old", "new", "renews"),
    [
        ("x * N", "x * N * 1", True),
        ("N, NAMES, UNUSED = 3", "N, NAMES, UNUSED = 4", True),
        ("2.5", "2.25", True),
        ('{"b", "a"}', '{"b", "c"}', True),
        ("n != 0", "n > 0", True),
        ("outer(5)", "outer(6)", True),
        ("from numpy import log", "from numpy import log2 as log", True),
        ("kernels.decode", "kernels.project", True),
        ("def helper(x):", "def helper(x):\n        'Docstring.'", False),
        ("UNUSED = 3", "UNUSED = (3)", False),
        ('{"b", "a"}', '{"a", "b"}', False),
        (", 7", ", 8", False),
        ("x + N", "x - N", True),  # of Base, which an annotation names
    ],
)
def test_a_function_of_a_cell_is_hashed_with_what_it_names(
    cells: Callable[[str], ModuleType], old: str, new: str, renews: bool
) -> None:
    assert CELL.count(old) >= 1
    before, after = (keys.code_of(cells(text).step) for text in (CELL, CELL.replace(old, new)))
    assert (before != after) == renews


@pytest.mark.parametrize(
    ("old", "new", "renews"),
    [
        ("super().shift(x)", "super().shift(-x)", True),
        ("2 * self.factor", "3 * self.factor", True),
        ("3 * self.factor", "4 * self.factor", True),
        ("return x\n        @classmethod", "return -x\n        @classmethod", True),
        ("return cls(4)", "return cls(5)", True),
        ("scale = 2", "scale = 3", True),
        ("N, NAMES, UNUSED = 3", "N, NAMES, UNUSED = 4", True),
        ("class Mine(Base):", "class Mine(Base, SAE):", True),
        ("factor: int = 1", "other: int = 0\n        factor: int = 1", True),
        ("order=True", "order=False", False),  # made by @dataclass
        ("'''Docstring.'''", "'''Another.'''", False),
        ("# comment", "# another", False),
        ("class Mine(Base):", "class Mine(Base):\n        'Docstring.'", False),
    ],
)
def test_a_class_of_a_cell_is_hashed_by_what_is_written_in_it(
    cells: Callable[[str], ModuleType], old: str, new: str, renews: bool
) -> None:
    assert CELL.count(old) == 1
    before, after = (keys.canonical(cells(text).Mine(factor=1)) for text in (CELL, CELL.replace(old, new)))
    after["Mine"].pop("other", None)
    assert (before != after) == renews


def test_a_class_of_a_cell_that_inherits_from_lib_follows_lib(cells: Callable[[str], ModuleType]) -> None:
    mine = cells("from lib.sae.variants import SAE\nclass Mine(SAE):\n    def of(self):\n        return 1\n").Mine
    assert keys._in_lib("lib.sae.variants", "SAE") in str(keys._code(mine, []))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "log = open('/dev/null')\ndef f(): return g()\ndef g(): return log.read()",
            "f names g: g names log: .*TextIOWrapper",
        ),
        ("import numpy as np\nx = np.zeros(3)\ndef f(): return x", "f names x: .*ndarray"),
        ("class A: pass\na = A()\ndef f(): return a", "f names a: .*A$"),
        ("g = lambda x: x\ndef f(): return g(1)", "f names g: <lambda> has no source of its own"),
        ("exec('def g(): return 1')\ndef f(): return g()", "f names g: g has no source of its own"),
    ],
)
def test_what_has_no_stable_form_is_told(cells: Callable[[str], ModuleType], text: str, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        keys.code_of(cells(text).f)


def test_a_local_name_is_not_the_global_of_that_name(cells: Callable[[str], ModuleType]) -> None:
    text = "x = open('/dev/null')\ndef f(y):\n    x = y\n    return x, [x for x in y], (lambda x: x)\n"
    assert keys.code_of(cells(text).f) == keys.code_of(cells(text.replace("open('/dev/null')", "None")).f)


def test_a_function_that_changes_a_name_of_the_one_around_it_has_a_key(cells: Callable[[str], ModuleType]) -> None:
    text = "def make():\n    n = 0\n    def f():\n        nonlocal n\n        n += 1\n        return n\n    return f\nf = make()\n"
    found = [keys.code_of(cells(each).f) for each in (text, text, text.replace("n += 1", "n += 2"))]
    assert found[0] == found[1] != found[2]


def test_a_cells_step_gets_a_new_key_when_what_it_names_changes(cells: Callable[[str], ModuleType]) -> None:
    there = cells("from lib import store\nn = 1\n@store.result\ndef f(x):\n    return x + n\n")
    before = there.f(1).key
    assert there.f(1).key == before
    there.n = 2
    assert there.f(1).key != before


def test_a_script_beside_the_notebooks_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for number, sign in enumerate("+-+"):
        (tmp_path / f"beside{number}.py").write_text(f"def best(x):\n    return {sign}x\n")
        (tmp_path / f"cell{number}.py").write_text(f"import beside{number} as b\ndef f(x):\n    return b.best(x)\n")
        found.append(keys.code_of(importlib.import_module(f"cell{number}").f))
    assert found[0] == found[2] != found[1]


# ----------------------------------------------------------------------------------------------------------- arguments


@dataclass(frozen=True)
class Times:
    factor: int
    inner: Any = None

    def of(self, n: int) -> int:
        return n * self.factor


class Settings(BaseModel):
    rule: Any
    share: float = 0.5


def test_an_object_is_hashed_as_what_it_is() -> None:
    found = keys.canonical(Times(3, [Times(4)]))
    assert found["Times"]["factor"] == 3 and found["Times"]["inner"][0]["Times"]["factor"] == 4
    same = make_dataclass("Times", ["factor", "inner"], frozen=True)  # equal fields, but it does nothing
    same.__module__ = __name__
    assert keys.canonical(same(3, None)) != keys.canonical(Times(3))
    assert keys.canonical(Settings(rule=Times(1))) != keys.canonical(Settings(rule=Times(2)))
    assert "code" in keys.canonical(Settings(rule=Times(1)))["Settings"]["rule"]


def test_what_has_a_key_stands_by_it_and_a_field_of_that_name_does_not() -> None:
    @store.result
    def step(x: int) -> int:
        return x

    assert keys.canonical({"b": step(1), "a": (1, "x", None, 0.5, True)}) == {
        "a": [1, "x", None, 0.5, True],
        "b": {"artifact": step(1).key},
    }
    assert "artifact" not in keys.canonical(make_dataclass("Row", ["key"])("x"))


@pytest.mark.parametrize("value", [np.zeros(2), object(), Path("x"), {"x": [np.float32(1)]}, b"x"])
def test_an_argument_without_a_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="must be plain values, models or artifacts, not "):
        keys.canonical(value)
