"""The compiled kernel alone, compared with a few lines of Python over `json.loads`, and each variant with the others.

Variants are compiled here, with warnings as errors: the one for machines without AVX2, the plain C for machines without
SSE2 or NEON, and NEON itself under an emulator.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn

import pytest
from hypothesis import event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer.scan.fragment import MAX_DEPTH
from optimizer.scan.native_pruner import _kept_objects
from tests.support.broken_documents import BrokenDocuments
from tests.support.engines import require_engine
from tests.support.examples import examples
from tests.support.strategies import cuts, rolling_bytes

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "optimizer" / "scan" / "_prune.c", ROOT / "optimizer" / "scan" / "kernel" / "prune.c"]
STRICT = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
VARIANTS: Final = {"built": None, "baseline": ["-DRP_BASELINE"], "plain": ["-DRP_PLAIN"]}
BLOCK_EDGES = (15, 16, 17, 31, 32, 33, 63, 64, 65)


def _missing(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{what} has to be there in CI")
    pytest.skip(f"needs {what}")


def compilers() -> list[str]:
    """Return the C compilers of this machine: gcc, and clang, with or without a version number in its name."""
    clangs = (f"clang-{number}" for number in range(30, 10, -1))
    clang = next((name for name in ("clang", *clangs) if shutil.which(name)), None)
    return [name for name in ("gcc", clang) if name and shutil.which(name)]


def compile_kernel(target: Path, *flags: str, compiler: str = "cc", with_python: bool = True) -> None:
    """Compile the extension, or the kernel alone; a warning fails the test."""
    include = sysconfig.get_path("include")
    python = ["-shared", "-fPIC", f"-I{include}", *map(str, SOURCES)] if with_python else []
    done = subprocess.run(
        [compiler, *STRICT, f"-I{ROOT / 'optimizer' / 'scan'}", *python, *flags, "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(params=VARIANTS, scope="module")
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The extension module: the installed one, and the variants for other machines."""
    flags = VARIANTS[request.param]
    if flags is None:
        require_engine("native")
        return importlib.import_module("optimizer.scan._prune")
    if not shutil.which("cc"):
        _missing("a C compiler")
    target = tmp_path_factory.mktemp(request.param) / "_prune.so"
    compile_kernel(target, *flags)
    loader = ExtensionFileLoader("optimizer.scan._prune", str(target))
    spec = importlib.util.spec_from_file_location("optimizer.scan._prune", target, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


MEMBERS: Final = {b"predictions": (3, 1, True), b"symbols": (3, 1, True), b"bots": (3, 3, False)}


class Pairs(list[tuple[str, Any]]):
    """A JSON object as the list of its members, in order."""


def fed(pruner: Any, *chunks: bytes) -> Iterator[Any]:
    """Feed the chunks to a pruner and yield its batches; each call takes as much as fits its buffers."""
    for chunk in chunks:
        left = memoryview(chunk)
        while left and pruner.error is None:
            batch = pruner.feed(left)
            left = left[batch[-1] :]
            yield batch


# Objects that are kept in records: `q`, and one with the name of a section, which has two objects inside it.
OBJECTS: Final[dict[str, Any]] = {"predictions": {"1d": {}, "predictions": {}}, "q": {}}
FLAT_OBJECTS: Final = _kept_objects(OBJECTS)


def pruned(kernel: Any, *chunks: bytes, objects: tuple[tuple[bytes, int, int], ...] = ()) -> bytes:
    """Return what the kernel leaves of a valid text; check that it found no error and that nothing is open."""
    pruner = kernel.Pruner((2, 1, True), MEMBERS, b"symbol", 96, MAX_DEPTH, objects)
    batches = [*fed(pruner, *chunks), pruner.finish()]
    assert (pruner.error, pruner.depth, pruner.in_string) == (None, 0, False)
    return b"".join(batch[0] for batch in batches)


def reference(
    value: Any,
    level: int = 1,
    unit: int = 2,
    last: int = 2,
    *,
    objects: Mapping[str, Any] = MappingProxyType({}),
    inside: tuple[Mapping[str, Any] | None, ...] = (),
) -> Any:
    """Return a value as the kernel keeps it.

    Containers below the last kept level are empty, and so are arrays in place of units. `objects` are kept in records;
    `inside` are those that may be kept in this value, if the root or the unit is a record.
    """
    if not isinstance(value, list):
        return value
    is_kept = isinstance(value, Pairs) and any(names is not None for names in inside)
    if (level > last and not is_kept) or (level == unit and not isinstance(value, Pairs)):
        return type(value)()
    if not isinstance(value, Pairs):
        return [reference(element, level + 1, unit, last, objects=objects) for element in value]
    if level == 1:
        inside = (objects,)
    if level == unit and last == unit:
        inside = (*inside, objects)
    kept, plain, record = Pairs(), level == 1, False
    for name, body in value:
        named = MEMBERS.get(name.encode("utf-8", "surrogatepass"), (2, 1, True)) if level == 1 else (unit, 0, True)
        below = (0, 0) if record else (named[0], named[0] + named[1] - 1) if level == 1 else (unit, last)
        kept_inside = tuple(names.get(name) for names in inside if names is not None)
        record |= plain and name == "symbol" and isinstance(body, str)
        plain &= not isinstance(body, Pairs) and not (isinstance(body, list) and below[0] > 2)
        kept.append((name, reference(body, level + 1, *below, objects=objects, inside=kept_inside)))
    return kept


def loads(data: bytes) -> Any:
    """Decode a text by `json.loads`: NaN and Infinity as null, integers as floats, objects as `Pairs`."""
    return json.loads(
        data.decode("utf-8", "surrogateescape"),
        object_pairs_hook=Pairs,
        parse_constant=lambda _: None,
        parse_int=float,
    )


trees = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-9, 10**9),
        st.floats(allow_subnormal=False),
        st.text(max_size=8),
        st.sampled_from(['"', "\\", '\\"', "}]", "[{", "NaN", "-Infinity"]),
    ),
    lambda inside: st.one_of(
        st.lists(inside, max_size=4),
        st.dictionaries(
            st.one_of(
                st.text(max_size=4),
                st.sampled_from(["predictions", "symbols", "bots", "symbol", "_meta"]),
                st.sampled_from(["predictions", "1d", "q"]),
            ),
            inside,
            max_size=4,
        ),
    ),
    max_leaves=30,
)


class TestReference:
    """The kernel's output, decoded by `json.loads`, equals what the reference in Python leaves of the value."""

    @hypothesis_settings(max_examples=examples(300))
    @given(st.data(), trees, st.sampled_from([None, 1, 2]), st.booleans())
    def test_any_value(
        self, kernel: Any, data: st.DataObject, value: Any, indent: int | None, ascii_only: bool
    ) -> None:
        """The kernel leaves of any value what the reference leaves, fed whole, byte by byte and cut anywhere.

        NaN and Infinity are among the values.
        """
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        expected = reference(loads(text))

        assert loads(pruned(kernel, text)) == expected
        assert loads(pruned(kernel, *(bytes((byte,)) for byte in text))) == expected
        assert loads(pruned(kernel, *data.draw(cuts(text)))) == expected

    @hypothesis_settings(max_examples=examples(500))
    @given(st.data(), trees, st.sampled_from([None, 1, 2]), st.booleans())
    def test_any_value_with_objects_that_records_keep(
        self, kernel: Any, data: st.DataObject, value: Any, indent: int | None, ascii_only: bool
    ) -> None:
        """The named objects inside records are kept too, wherever a record may be, and nothing else is."""
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        expected = reference(loads(text), objects=OBJECTS)
        event("keeps more" if expected != reference(loads(text)) else "keeps no more")

        assert loads(pruned(kernel, text, objects=FLAT_OBJECTS)) == expected
        assert loads(pruned(kernel, *(bytes((byte,)) for byte in text), objects=FLAT_OBJECTS)) == expected
        assert loads(pruned(kernel, *data.draw(cuts(text)), objects=FLAT_OBJECTS)) == expected

    @pytest.mark.parametrize("edge", BLOCK_EDGES)
    @pytest.mark.parametrize(
        ("key", "is_kept"),
        [
            ('"q":', True),
            ('"q" \n : ', True),
            ('"\\u0071":', True),
            (f'"q"{" " * 80}:{" " * 80}', True),
            ('"q\\"":', False),
            ('"qq":', False),
            ('"":', False),
            ('"x":"q":', True),
            ('"q"::', False),
            ('"q"1:', False),
            ('"q":1', False),
            ('"q":NaN', False),
            ('"q":-', False),
            ('"q":[]:', False),
            ('"q"{}:', False),
            (f'"{"q" * 400}":', False),
            (f'"x":"{"y" * 400}","q":', True),
        ],
    )
    def test_keys_of_kept_objects_across_every_block_edge(
        self, kernel: Any, edge: int, key: str, is_kept: bool
    ) -> None:
        """An object is kept if its key, a colon and white space come right before it, and is emptied otherwise.

        This holds at any offset around the edge of a block.
        """
        for shift in range(-8, 3):
            for opening, closing in (('[{"x":"', "}]"), ('{"A":{"x":"', "}}")):
                filler = "f" * max(0, edge + shift - len(opening))
                text = f'{opening}{filler}",{key}{{"k":1,"d":[2]}}{closing}'.encode()
                kept = b'{"k":1,"d":[]}' if is_kept else b"{}"
                for chunks in ([text], [bytes((byte,)) for byte in text], [text[:edge], text[edge:]]):
                    output = pruned(kernel, *chunks, objects=FLAT_OBJECTS)
                    assert output.endswith(kept + closing.encode()), (text, output)

    @pytest.mark.parametrize(
        "text",
        [
            b'{"A":{"q":{"x":1,"d":{"q":{}}},"predictions":{"1d":{"p":2,"d":[3]},"5d":{"p":4}}}}',
            b'{"symbol":"A","predictions":{"predictions":{"q":{}},"1d":{"x":[1]}},"q":[{}],"z":{"q":{"a":1}}}',
            b'{"predictions":{"1d":{"q":{"c":1},"p":{}}},"q":{"predictions":{"1d":{}}},"symbol":"A"}',
        ],
    )
    def test_every_cut_of_small_inputs_with_kept_objects(self, kernel: Any, text: bytes) -> None:
        """Inputs with kept objects give the same output however they are cut into two or three chunks."""
        whole = pruned(kernel, text, objects=FLAT_OBJECTS)

        assert loads(whole) == reference(loads(text), objects=OBJECTS) != reference(loads(text))
        for first, second in itertools.combinations_with_replacement(range(len(text) + 1), 2):
            chunks = (text[:first], text[first:second], text[second:])
            assert pruned(kernel, *chunks, objects=FLAT_OBJECTS) == whole

    @pytest.mark.parametrize(
        "objects", [((b"", 0, 0), (b"", 1, 1)), ((b"", 0, 0), (b"", 2, 1)), ((b"", 2, 1),), ((b"", 0, 0),) * 513]
    )
    def test_objects_with_wrong_indexes_are_refused(
        self, kernel: Any, objects: tuple[tuple[bytes, int, int], ...]
    ) -> None:
        """Objects with wrong indexes, or too many objects, are a `ValueError`, since the kernel does not check them."""
        with pytest.raises(ValueError, match="object"):
            kernel.Pruner((2, 1, True), MEMBERS, b"symbol", 96, MAX_DEPTH, objects)

    @pytest.mark.parametrize(
        "text",
        [
            b'{"A":{"a":[1,[2]],"b":"}]\\"\\\\","c":{"d":{}}},"_m":{"x":[]}}',
            b'[{"symbol":"A","x":{"y":"\\\\\\""}},[1],NaN,-Infinity]',
            b'{"bots":{"b":{"positions":[{"s":1,"o":[1]}]}},"predictions":[{"x":[1]}]}',
            b'{"c":NaN,"symbol":"A","x":{"y":{}},"z":Infinity }',
        ],
    )
    def test_every_cut_of_small_inputs(self, kernel: Any, text: bytes) -> None:
        """Small inputs give the same output however they are cut into two or three chunks."""
        whole = pruned(kernel, text)

        assert loads(whole) == reference(loads(text))
        for first, second in itertools.combinations_with_replacement(range(len(text) + 1), 2):
            assert pruned(kernel, text[:first], text[first:second], text[second:]) == whole

    @pytest.mark.parametrize("edge", BLOCK_EDGES)
    @pytest.mark.parametrize("token", [r"\"", r"\\", r"\\\"", r"\\\\", r"\u005c", "}", "]", r"\"}", "[{"])
    def test_escapes_and_quotes_across_every_block_edge(self, kernel: Any, edge: int, token: str) -> None:
        """Escapes, quotes and brackets inside a string are text, at each offset around the edge of a block.

        The string is kept in one case and discarded in the other.
        """
        for shift in range(-4, 5):
            for opening, closing in (
                ('{"A":{"x":"', '"},"B":{"y":[1]}}'),
                ('{"A":{"x":["', '",{"z":"]"}]},"B":{"y":[1]}}'),
            ):
                filler = "f" * (edge + shift - len(opening))
                text = (opening + filler + token + closing).encode()

                assert loads(pruned(kernel, text)) == reference(loads(text)), text

    @pytest.mark.parametrize("edge", BLOCK_EDGES)
    @pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "-1", "Nan", "-NaN", "xNaN", "NaNs"])
    def test_constants_across_every_block_edge(self, kernel: Any, edge: int, constant: str) -> None:
        """`NaN` and `Infinity` become null at any offset if they are whole tokens; similar text is left as it is."""
        whole = constant in ("NaN", "Infinity", "-Infinity")
        for shift in range(-10, 3):
            for before, after in (("", "}"), (" ", " }"), ("\n", ',"n":1}')):
                opening = '{"A":{' + " " * max(0, edge + shift - 12) + '"x":' + before
                text = (opening + constant + after + "}").encode()
                kept = "null".ljust(len(constant)) if whole else constant

                for chunks in ([text], [bytes((byte,)) for byte in text]):
                    assert pruned(kernel, *chunks) == (opening + kept + after + "}").encode()

    @pytest.mark.parametrize("depth", [0, 1, 2, 3, 31, 32, 33, 63, 64, 65, 500, MAX_DEPTH - 2])
    @pytest.mark.parametrize("pair", ["[]", '{"":}'])
    def test_any_depth(self, kernel: Any, depth: int, pair: str) -> None:
        """A record's field is emptied however deep its containers are nested, and the field after it is kept."""
        nested = pair[:-1] * depth + "1" + pair[-1] * depth
        text = f'{{"A":{{"x":{nested},"y":2}}}}'.encode()
        emptied = "1" if depth == 0 else pair[0] + pair[-1]

        assert pruned(kernel, text) == f'{{"A":{{"x":{emptied},"y":2}}}}'.encode()

    def test_a_container_of_many_blocks(self, kernel: Any) -> None:
        """A container with a megabyte of brackets, of both kinds and at changing depth, ends at the right byte."""
        inside = '[{"a":[[1],[2]],"b":{}},"]}",[[[]]]],{"c":{"d":[{}]}},' * 20_000
        text = f'{{"A":{{"x":[{inside}1],"y":[2]}}}}'.encode()

        assert pruned(kernel, text) == b'{"A":{"x":[],"y":[]}}'


# ---- variants


def broken_files() -> list[bytes]:
    """Return valid and damaged files of all shapes, and one of many blocks."""
    files = [documents.file() for documents in map(BrokenDocuments, range(5)) for _ in range(20)]
    return [*files, b"[" + b",".join(file for file in files if file.startswith(b"{")) * 5 + b"]"]


def test_variants_give_the_same_bytes(kernel: Any) -> None:
    """Each variant gives the same output, spans, offsets and errors as the installed kernel, to the byte."""
    installed = importlib.import_module("optimizer.scan._prune")

    kept = _kept_objects({"curves": {"a": {}}, "x": {"x": {}}, "A": {}})

    def everything(module: Any, data: bytes, step: int, objects: tuple[tuple[bytes, int, int], ...]) -> object:
        pruner = module.Pruner((2, 1, True), MEMBERS, b"symbol", 96, 20, objects)
        batches = [*fed(pruner, *(data[start : start + step] for start in range(0, len(data), step)))]
        return batches, pruner.error, pruner.depth, pruner.in_string

    for data in broken_files():
        for step in (1 << 20, 64, 13):
            for objects in ((), kept):
                assert everything(kernel, data, step, objects) == everything(installed, data, step, objects)


def replay(program: list[str], data: bytes, step: int) -> bytes:
    """Return what `tests/scan/kernel/replay.c` prints for the data in chunks of `step` bytes."""
    return subprocess.run([*program, str(step)], input=data, stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.slow
def test_arm64_gives_the_same_bytes(tmp_path: Path) -> None:
    """The NEON variant on an emulated arm64 machine gives the same output as the kernel compiled for this machine."""
    cross, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if not cross or not emulator:
        _missing("aarch64-linux-gnu-gcc and qemu-aarch64")
    sources = [str(ROOT / "tests" / "scan" / "kernel" / "replay.c"), str(SOURCES[1])]
    compile_kernel(tmp_path / "arm64", *sources, "-static", compiler=cross, with_python=False)
    compile_kernel(tmp_path / "here", *sources, with_python=False)
    documents = BrokenDocuments(99)

    for data in [broken_files()[-1], *(documents.file() for _ in range(10))]:
        for step in (1 << 24, 77):
            output = replay([emulator, str(tmp_path / "arm64")], data, step)
            assert output == replay([str(tmp_path / "here")], data, step)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["-mno-avx"], ["-DRP_BASELINE"], ["-DRP_PLAIN"], ["-O3"]], ids=" ".join)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_it_compiles_without_a_warning(compiler: str, flags: list[str], tmp_path: Path) -> None:
    """The extension and its kernel compile without a warning, with gcc and clang, for old and new machines."""
    available = [name for name in compilers() if name.startswith(compiler)]
    if not available:
        _missing(compiler)
    compile_kernel(tmp_path / "_prune.so", *flags, compiler=available[0])


def test_the_kernel_knows_nothing_of_python() -> None:
    """No file of the kernel includes Python's header, so that the kernel can be compiled and fuzzed alone."""
    for path in (ROOT / "optimizer" / "scan" / "kernel").iterdir():
        assert "Python.h>" not in path.read_text()


def test_a_python_can_use_what_a_newer_one_has_compiled() -> None:
    """The extension has no `#` in a format and no `Py_RETURN_...`, so a newer Python may compile it for an older one.

    What the headers make of these fails on older Pythons: a `#` since 3.13, `Py_RETURN_NONE` since 3.12.
    """
    source = re.sub(r"/\*.*?\*/", "", (ROOT / "optimizer" / "scan" / "_prune.c").read_text(), flags=re.DOTALL)
    formats = re.findall(r'(?:PyArg_Parse|Py_BuildValue)\w*\([^"]*"([^";]*)', source)
    assert len(formats) == source.count("PyArg_Parse") + source.count("Py_BuildValue")
    assert not [each for each in formats if "#" in each]
    assert "Py_RETURN" not in source


@pytest.mark.slow
@hypothesis_settings(max_examples=examples(100))
@given(st.data(), rolling_bytes())
def test_spans_hold_whole_records(kernel: Any, data: st.DataObject, whole: bytes) -> None:
    """A span of members or elements has as many objects as its count says, as `json.loads` reads it."""
    pruner = kernel.Pruner((2, 1, True), MEMBERS, b"symbol", 96, MAX_DEPTH)
    stream, spans = b"", []
    for output, added, _, pending, _ in fed(pruner, *data.draw(cuts(whole))):
        stream += output
        spans += added
        assert pending <= len(stream)

    for start, end, count, longest, kind in spans:
        text = stream[start:end].decode("utf-8", "surrogateescape")
        assert longest <= len(stream[start:end])
        if kind == 3:
            continue
        opening, closing = "{}" if kind == 1 else "[]"
        try:
            held = json.loads(opening + text + closing, object_pairs_hook=Pairs)
        except ValueError:
            continue  # the decoder reports what is wrong with it
        assert sum(isinstance(entry[1] if kind == 1 else entry, Pairs) for entry in held) == count
