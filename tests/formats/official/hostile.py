"""The corpus: hostile pickles, each as (bytes, whether plain ``pickle.load`` springs it).

Fragments are raw opcodes that leave one object on the stack; they are spliced into a real
snapshot as one more entry. Edits change the real snapshot's nodes and are written by our own
emitter, which judges nothing.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from typing import TYPE_CHECKING

from dsconvert.formats.official.persistence import node_of, persistent
from dsconvert.formats.official.read import parse
from dsconvert.safepickle.encode import storage_header
from dsconvert.safepickle.nodes import DictNode, Global, Node, Record, children, is_leaf
from dsconvert.safepickle.source import Source
from dsconvert.safepickle.storage import is_parameter, is_tensor
from dsconvert.safepickle.write import Writer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRAPS = "tests.formats.official.traps"
BUILD, REDUCE, NEWOBJ, NONE, POP = b"b", b"R", b"\x81", b"N", b"0"


def s(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def raw(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def g(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def sg(module: str, name: str) -> bytes:
    return s(module) + s(name) + b"\x93"


def t(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def lst(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def dct(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"}(" + b"".join(k + v for k, v in pairs) + b"u"


def call(func: bytes, *args: bytes) -> bytes:
    return func + t(*args) + REDUCE


def new(cls: bytes, *args: bytes) -> bytes:
    return cls + t(*args) + NEWOBJ


MKDIR = g("os", "mkdir")
OS = g("torch", "os")  # the module, as an attribute of another
MODULE = g("torch.nn.modules.module", "Module")


def trap(name: str) -> bytes:
    return g(TRAPS, name)


def mapped(p: str) -> bytes:
    return call(g("builtins", "map"), MKDIR, lst(s(p)))


def evil(p: str) -> bytes:
    """A whole pickle that springs."""
    return b"\x80\x04" + call(MKDIR, s(p)) + b"."


def nested(p: str, *, at: int) -> bytes:
    """A legacy torch file with the payload in its ``at``-th pickle."""
    head = storage_header("FloatStorage", 1, "0")
    parts = []
    stream = io.BytesIO(head)
    for _ in range(5):
        start = stream.tell()
        list(__import__("pickletools").genops(stream))
        parts.append(head[start : stream.tell()])
    bad = call(MKDIR, s(p))
    hidden = {
        0: b"\x80\x02" + bad + b"0\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        1: b"\x80\x02" + bad + b"0M\xe9\x03.",
        2: parts[2][:-2] + s("extra") + bad + b"u.",
        3: b"\x80\x02("
        + s("storage")
        + b"ctorch\nFloatStorage\n"
        + s("0")
        + s("cpu")
        + b"K\x01"
        + bad
        + b"0NtQ.",
        4: b"\x80\x02" + bad + b"0]" + s("0") + b"a.",
    }
    parts[at] = hidden[at]
    return b"".join(parts) + struct.pack("<q", 1) + b"\0\0\0\0"


def nested_zip(p: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", evil(p))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return out.getvalue()


def storage(data: bytes) -> bytes:
    return call(g("torch.storage", "_load_from_bytes"), raw(data))


def source_text(p: str) -> str:
    return f"import os\nos.mkdir({p!r})\n"


RECONSTRUCT = g("torch_utils.persistence", "_reconstruct_persistent_obj")
META = (
    (s("version"), b"K\x06"),
    (s("type"), s("class")),
    (s("class_name"), s("Generator")),
    (s("state"), dct()),
)


def persisted(p: str, *, text: bytes | None = None, state: bytes | None = None) -> bytes:
    """A well-formed persistent object whose source makes ``p`` (none where it is empty)."""
    source = s(source_text(p) if p else "") if text is None else text
    fields = (*META[:3], (s("state"), dct() if state is None else state))
    return call(RECONSTRUCT, dct(*fields, (s("module_src"), source)))


IDENTITY = g("torch.nn.modules.linear", "Identity")
PLAIN = dct((s("training"), NONE))


def _module_dict(items: bytes) -> bytes:
    """A module whose ``items()`` are its modules, and not what the pickle sets."""
    kind = g("torch.nn.modules.container", "ModuleDict")
    return new(kind) + dct((s("_modules"), items)) + BUILD


FRAGMENTS: dict[str, tuple[Callable[[str], bytes], bool]] = {
    # Every opcode that calls.
    "reduce": (lambda p: call(MKDIR, s(p)), True),
    "reduce-stack-global": (lambda p: call(sg("os", "mkdir"), s(p)), True),
    "reduce-text-protocol": (lambda p: f"cos\nmkdir\n(S{p!r}\ntR".encode(), True),
    "inst": (lambda p: b"(" + s(p) + b"ios\nmkdir\n", True),
    "obj": (lambda p: b"(" + MKDIR + s(p) + b"o", True),
    "newobj": (lambda p: new(trap("New"), s(p)), True),
    "newobj-ex": (lambda p: trap("New") + t() + dct((s("path"), s(p))) + b"\x92", True),
    "build-setstate": (lambda p: new(trap("Setstate")) + s(p) + BUILD, True),
    "build-slots": (
        lambda p: new(trap("Slots")) + t(NONE, dct((s("x"), s(p)))) + BUILD,
        True,
    ),
    # The objects of torch that are allowed, with state that a dict does not hold.
    "build-by-a-module": (lambda p: new(IDENTITY) + _module_dict(PLAIN) + BUILD, False),
    "build-slots-of-a-module": (lambda p: new(IDENTITY) + t(NONE, PLAIN) + BUILD, False),
    "hooks-in-a-module": (
        lambda p: new(IDENTITY) + dct((s("_forward_hooks"), _module_dict(PLAIN))) + BUILD,
        False,
    ),
    "build-on-class": (
        lambda p: (
            trap("Victim")
            + t(NONE, dct((s("run"), MKDIR)))
            + BUILD
            + POP
            + call(trap("Victim"), s(p))
        ),
        True,
    ),
    "build-on-module-object": (
        lambda p: (
            g("sys", "modules")
            + b"0"
            + g("os", "path")
            + dct((s("dsconvert_was_here"), s(p)))
            + BUILD
        ),
        False,
    ),
    "setitem": (lambda p: new(trap("Items")) + s("k") + s(p) + b"s", True),
    "setitems": (lambda p: new(trap("Items")) + b"(" + s("k") + s(p) + b"u", True),
    "append": (lambda p: new(trap("Items")) + s(p) + b"a", True),
    "appends": (lambda p: new(trap("Items")) + b"(" + s(p) + b"e", True),
    "additems": (lambda p: new(trap("Items")) + b"(" + s(p) + b"\x90", True),
    "extension-1": (lambda p: b"\x82\xf0" + t(s(p)) + REDUCE, True),
    "extension-2": (lambda p: b"\x83\xf0\x00" + t(s(p)) + REDUCE, True),
    "extension-4": (lambda p: b"\x84\xf0\x00\x00\x00" + t(s(p)) + REDUCE, True),
    "persid": (lambda p: b"P" + p.encode() + b"\n", False),
    "binpersid": (lambda p: s(p) + b"Q", False),
    "import-alone": (lambda p: g("trap_on_import", "x") + POP + NONE, True),
    "import-alone-stack-global": (lambda p: sg("trap_on_import", "x"), True),
    # Names.
    "dotted-stack-global": (lambda p: call(sg("os", "path.os.mkdir"), s(p)), True),
    "dotted-below-allowed-root": (
        lambda p: call(sg("torch.nn.modules.module", "torch.os.mkdir"), s(p)),
        True,
    ),
    "dotted-new": (lambda p: new(sg("torch.nn.modules.module", "torch.os.mkdir"), s(p)), False),
    "attribute-of-allowed-root": (
        lambda p: (
            call(sg("torch.nn.modules.module", "functools.partial"), MKDIR, s(p)) + t() + REDUCE
        ),
        True,
    ),
    "builtin-of-python-2": (
        lambda p: b"\x80\x02" + call(g("__builtin__", "eval"), s(f"__import__('os').mkdir({p!r})")),
        True,
    ),
    "lookalike-root": (lambda p: new(g("torch.nn.modules_evil", "Conv2d")), False),
    "lookalike-dunder": (lambda p: new(g("timm.models.__init__", "Net")), False),
    "lookalike-unicode": (lambda p: new(g("torch.nn.modules.сonv", "Conv2d")), False),
    "name-with-space": (lambda p: new(sg("torch.nn.modules.conv ", "Conv2d")), False),
    "name-empty": (lambda p: new(sg("torch.nn.modules.conv", "")), False),
    "name-private": (lambda p: new(sg("torch.nn.modules.module", "_Hidden")), False),
    "name-relative": (lambda p: new(sg("torch.nn.modules..os", "X")), False),
    # Indirect callables.
    "eval": (lambda p: call(g("builtins", "eval"), s(f"__import__('os').mkdir({p!r})")), True),
    "exec": (lambda p: call(g("builtins", "exec"), s(source_text(p))), True),
    "system": (lambda p: call(g("os", "system"), s(f"mkdir '{p}'")), True),
    "subprocess": (
        lambda p: call(g("subprocess", "check_call"), lst(s("mkdir"), s(p))),
        True,
    ),
    "open": (lambda p: call(g("builtins", "open"), s(p), s("w")), True),
    "path-touch": (
        lambda p: call(sg("pathlib", "Path.touch"), call(g("pathlib", "Path"), s(p))),
        True,
    ),
    "getattr-chain": (lambda p: call(call(g("builtins", "getattr"), OS, s("mkdir")), s(p)), True),
    "getattr-of-dict": (
        lambda p: call(
            call(
                g("operator", "getitem"),
                call(g("builtins", "getattr"), OS, s("__dict__")),
                s("mkdir"),
            ),
            s(p),
        ),
        True,
    ),
    "methodcaller": (
        lambda p: call(call(g("operator", "methodcaller"), s("mkdir"), s(p)), OS),
        True,
    ),
    "attrgetter": (
        lambda p: call(call(call(g("operator", "attrgetter"), s("mkdir")), OS), s(p)),
        True,
    ),
    "partial": (lambda p: call(call(g("functools", "partial"), MKDIR, s(p))), True),
    "partial-by-state": (
        lambda p: (
            call(g("functools", "partial"), g("builtins", "len"))
            + t(MKDIR, t(s(p)), dct(), NONE)
            + BUILD
            + t()
            + REDUCE
        ),
        True,
    ),
    "list-of-map": (lambda p: call(g("builtins", "list"), mapped(p)), True),
    "tuple-of-map": (lambda p: call(g("builtins", "tuple"), mapped(p)), True),
    "frozenset-of-map": (lambda p: call(g("builtins", "frozenset"), mapped(p)), True),
    "bytearray-of-map": (lambda p: call(g("builtins", "bytearray"), mapped(p)), True),
    "ordered-dict-of-map": (lambda p: call(g("collections", "OrderedDict"), mapped(p)), True),
    "size-of-map": (lambda p: call(g("torch", "Size"), mapped(p)), True),
    "deque-of-map": (lambda p: call(g("collections", "deque"), mapped(p)), True),
    "filter": (
        lambda p: call(g("builtins", "list"), call(g("builtins", "filter"), MKDIR, lst(s(p)))),
        True,
    ),
    "starmap": (
        lambda p: call(g("builtins", "list"), call(g("itertools", "starmap"), MKDIR, lst(t(s(p))))),
        True,
    ),
    "nsmallest-key": (
        lambda p: call(g("heapq", "nsmallest"), b"K\x01", lst(s(p), s(p + "2")), MKDIR),
        True,
    ),
    "max-of-map": (
        lambda p: call(g("builtins", "list"), call(g("builtins", "zip"), mapped(p))),
        True,
    ),
    "default-factory": (
        lambda p: call(
            g("operator", "getitem"),
            call(g("collections", "defaultdict"), call(g("functools", "partial"), MKDIR, s(p))),
            s("x"),
        ),
        True,
    ),
    "timeit": (
        lambda p: call(
            g("timeit", "timeit"),
            s(source_text(p)),
            s("pass"),
            g("time", "perf_counter"),
            b"K\x01",
        ),
        True,
    ),
    "compile-and-call": (
        lambda p: call(
            call(
                g("types", "FunctionType"),
                call(g("builtins", "compile"), s(source_text(p)), s("x"), s("exec")),
                dct(),
            )
        ),
        True,
    ),
    "import-module": (lambda p: call(g("importlib", "import_module"), s("trap_on_import")), True),
    "dunder-import": (lambda p: call(g("builtins", "__import__"), s("trap_on_import")), True),
    "type-call": (
        lambda p: call(
            call(
                g("builtins", "type"),
                s("X"),
                t(g("builtins", "object")),
                dct((s("__init__"), MKDIR)),
            )
        ),
        False,
    ),
    "pickle-loads": (lambda p: call(g("pickle", "loads"), raw(evil(p))), True),
    "c-pickle-loads": (lambda p: call(g("_pickle", "loads"), raw(evil(p))), True),
    "torch-load": (
        lambda p: (
            call(g("functools", "partial"), g("torch", "load"))
            + t(
                g("torch", "load"),
                t(call(g("_io", "BytesIO"), raw(nested(p, at=0)))),
                dct((s("weights_only"), b"\x89")),
                NONE,
            )
            + BUILD
            + t()
            + REDUCE
        ),
        True,
    ),
    "copyreg-reconstructor": (
        lambda p: (
            call(g("copyreg", "_reconstructor"), trap("Setstate"), g("builtins", "object"), NONE)
            + s(p)
            + BUILD
        ),
        True,
    ),
    "copyreg-reconstructor-base": (
        lambda p: call(g("copyreg", "_reconstructor"), MODULE, trap("New"), s(p)),
        True,
    ),
    "copyreg-newobj": (lambda p: call(g("copyreg", "__newobj__"), trap("New"), s(p)), True),
    "copyreg-newobj-ex": (
        lambda p: call(g("copyreg", "__newobj_ex__"), trap("New"), t(s(p)), dct()),
        True,
    ),
    "persistence-source": (
        lambda p: call(
            g("torch_utils.persistence", "_reconstruct_persistent_obj"),
            dct((s("module_src"), s(source_text(p))), (s("class_name"), s("X"))),
        ),
        True,
    ),
    # Whole persistent objects, as the official loader would take them.
    "persistence-whole": (lambda p: persisted(p), True),
    "persistence-twice": (lambda p: lst(persisted(p), persisted(p)), True),
    "persistence-in-its-own-state": (
        lambda p: persisted("", state=dct((s("x"), persisted(p)))),
        True,
    ),
    "persistence-state-calls": (
        lambda p: persisted("", state=dct((s("x"), call(MKDIR, s(p))))),
        True,
    ),
    "persistence-source-by-call": (
        lambda p: persisted("", text=call(MKDIR, s(p))),
        True,
    ),
    "persistence-source-in-pieces": (
        lambda p: persisted("", text=call(g("builtins", "str"), s(source_text(p)))),
        True,
    ),
    "persistence-source-twice": (
        lambda p: call(
            RECONSTRUCT, dct(*META, (s("module_src"), s("")), (s("module_src"), s(source_text(p))))
        ),
        True,
    ),
    "persistence-version-7": (
        lambda p: call(
            RECONSTRUCT,
            dct((s("version"), b"K\x07"), *META[1:], (s("module_src"), s(source_text(p)))),
        ),
        True,
    ),
    "persistence-hidden-meta": (
        lambda p: call(
            RECONSTRUCT,
            call(g("collections", "OrderedDict"), lst(t(s("module_src"), s(source_text(p))))),
        ),
        True,
    ),
    "persistence-by-inst": (
        lambda p: (
            b"("
            + dct(*META, (s("module_src"), s(source_text(p))))
            + b"itorch_utils.persistence\n_reconstruct_persistent_obj\n"
        ),
        True,
    ),
    "persistence-popped": (lambda p: persisted(p) + POP + NONE, True),
    "persistence-memoised": (lambda p: persisted(p) + b"\x94" + POP + NONE, True),
    "persistence-as-key": (lambda p: dct((persisted(p), NONE)), True),
    "persistence-then-build": (lambda p: persisted("") + call(MKDIR, s(p)) + BUILD, True),
    "persistence-exec": (
        lambda p: call(g("torch_utils.persistence", "_src_to_module"), s(source_text(p))),
        True,
    ),
    "persistence-import-hook": (
        lambda p: call(g("torch_utils.persistence", "import_hook"), g("builtins", "exec")),
        False,
    ),
    "persistence-new": (
        lambda p: new(g("torch_utils.persistence", "Generator")) + dct((s("p"), s(p))) + BUILD,
        False,
    ),
    "numpy-object-dtype": (
        lambda p: call(g("numpy", "dtype"), s("O8"), b"\x89", b"\x88"),
        False,
    ),
    "numpy-dtype-flags": (
        lambda p: (
            call(g("numpy", "dtype"), s("V8"), b"\x89", b"\x88")
            + t(b"K\x03", s("|"), NONE, NONE, NONE, b"K\x08", b"K\x01", b"K\x3f")
            + BUILD
        ),
        False,
    ),
    "numpy-array-state": (
        lambda p: (
            call(
                g("numpy.core.multiarray", "_reconstruct"),
                g("numpy", "ndarray"),
                t(b"K\x00"),
                b"C\x01b",
            )
            + t(b"K\x01", t(b"K\x01"), call(MKDIR, s(p)), b"\x89", b"C\x00")
            + BUILD
        ),
        True,
    ),
    "numpy-array-of-trap": (
        lambda p: call(
            g("numpy.core.multiarray", "_reconstruct"), trap("New"), t(b"K\x00"), raw(b"b")
        ),
        False,
    ),
    "codecs-encode-rot13": (lambda p: call(g("_codecs", "encode"), s(p), s("rot13")), False),
    # Nested storages.
    **{
        f"storage-pickle-{at}": (lambda p, at=at: storage(nested(p, at=at)), True)
        for at in range(5)
    },
    "storage-is-a-payload": (lambda p: storage(evil(p)), True),
    "storage-zip": (lambda p: storage(nested_zip(p)), True),
    "storage-of-call": (
        lambda p: call(g("torch.storage", "_load_from_bytes"), call(MKDIR, s(p))),
        True,
    ),
    # Results that are not kept, or are used in passing.
    "popped": (lambda p: call(MKDIR, s(p)) + POP + NONE, True),
    "popped-by-mark": (lambda p: b"(" + call(MKDIR, s(p)) + b"1" + NONE, True),
    "memo-only": (lambda p: call(MKDIR, s(p)) + b"r\x40\x42\x0f\x00" + POP + NONE, True),
    "duplicated": (lambda p: call(MKDIR, s(p)) + b"2\x86", True),
    "dict-key": (lambda p: dct((call(MKDIR, s(p)), NONE)), True),
    "dict-key-hash": (
        lambda p: dct((new(trap("Hash")) + dct((s("path"), s(p))) + BUILD, NONE)),
        True,
    ),
    "set-item-hash": (
        lambda p: b"\x8f(" + new(trap("Hash")) + dct((s("path"), s(p))) + BUILD + b"\x90",
        True,
    ),
    "frozenset-hash": (
        lambda p: b"(" + new(trap("Hash")) + dct((s("path"), s(p))) + BUILD + b"\x91",
        True,
    ),
    "deep-inside": (lambda p: lst(t(dct((s("a"), lst(t(call(MKDIR, s(p)))))))), True),
    "in-arguments": (lambda p: call(g("torch", "device"), call(MKDIR, s(p))), True),
    "as-state-of-module": (lambda p: new(MODULE) + call(MKDIR, s(p)) + BUILD, True),
    "module-with-arguments": (lambda p: new(MODULE, s(p)), False),
}


def spliced(real: bytes, fragment: bytes, key: str = "extra") -> bytes:
    """``real`` with one more entry; our writer ends in SETITEMS STOP."""
    assert real.endswith(b"u.")
    return real[:-2] + s(key) + fragment + b"u."


# Edits of a real snapshot's nodes ----------------------------------------------------------


def evil_call(p: str) -> Record:
    return Record("call", Global("os", "mkdir"), (p,))


def persistent_node(p: str) -> Record:
    return node_of("Generator", source_text(p), [("_modules", DictNode())])


def persistent_nodes(roots: list[Node]) -> list[Record]:
    """All persistent objects below ``roots``, outermost first."""
    found: list[Record] = []
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        node = stack.pop(0)
        if is_leaf(node) or id(node) in seen:
            continue
        seen.add(id(node))
        if persistent(node) is not None:
            found.append(node)
        stack.extend(child for _, child in children(node))
    return found


def evil_global() -> Global:
    return Global("os", "mkdir")


def state(node: Record) -> DictNode:
    return next(v for op, v in node.ops if op == "build")


def put(node: Record, key: str, value: Node) -> None:
    pairs = state(node).items
    pairs[:] = [(k, v) for k, v in pairs if k != key]
    pairs.append((key, value))


def get(node: Record, key: str) -> Record:
    return next(v for k, v in state(node).items if k == key)


def items(node: Node) -> list[tuple[Node, Node]]:
    if isinstance(node, DictNode):
        return node.items
    for op, value in node.ops:
        if op == "setitems":
            return value
    node.ops.append(("setitems", []))
    return node.ops[-1][1]


def find(node: Record, name: str) -> Record:
    """First module below ``node`` whose class has this name."""
    stack: list[Record] = [node]
    while stack:
        at = stack.pop()
        if at.func.name == name:
            return at
        stack.extend(v for _, v in items(get(at, "_modules")) if v is not None)
    raise LookupError(name)


def module(*pairs: tuple[Node, Node]) -> Record:
    node = Record("new", Global("torch.nn.modules.module", "Module"), ())
    node.ops.append(("build", DictNode(list(pairs))))
    return node


def first_parameter(root: dict[str, Node]) -> tuple[list[tuple[Node, Node]], int]:
    pairs = items(get(find(root["G_ema"], "BatchNorm2d"), "_parameters"))
    index = next(i for i, (_, v) in enumerate(pairs) if is_parameter(v))
    return pairs, index


def replace_parameter(root: dict[str, Node], value: Node) -> None:
    pairs, index = first_parameter(root)
    pairs[index] = (pairs[index][0], value)


def tensor_with(root: dict[str, Node], position: int, value: Node) -> None:
    pairs, index = first_parameter(root)
    tensor = pairs[index][1].args[0]
    assert is_tensor(tensor)
    args = list(tensor.args)
    args[position] = value
    tensor.args = tuple(args)


def hooks_with(value: Node) -> Record:
    node = Record("call", Global("collections", "OrderedDict"), ())
    node.ops.append(("setitems", [(0, value)]))
    return node


Root = dict[str, Node]
EDITS: dict[str, tuple[Callable[[Root, str], None], bool]] = {
    "entry-G": (lambda r, p: r.update(G=evil_call(p)), True),
    "entry-D": (lambda r, p: r.update(D=evil_call(p)), True),
    "entry-G_ema": (lambda r, p: r.update(G_ema=evil_call(p)), True),
    "entry-training-set-kwargs": (
        lambda r, p: r.update(training_set_kwargs=DictNode([("path", evil_call(p))])),
        True,
    ),
    "entry-augment-pipe": (lambda r, p: r.update(augment_pipe=evil_call(p)), True),
    "entry-progress": (lambda r, p: r.update(progress=DictNode([("fid", evil_call(p))])), True),
    "entry-first": (lambda r, p: _first(r, "A", evil_call(p)), True),
    "G-persistent": (lambda r, p: r.update(G=persistent_node(p)), True),
    "D-persistent": (lambda r, p: r.update(D=persistent_node(p)), True),
    "augment-pipe-persistent": (lambda r, p: r.update(augment_pipe=persistent_node(p)), True),
    "kwargs-persistent": (
        lambda r, p: r.update(training_set_kwargs=DictNode([("x", persistent_node(p))])),
        True,
    ),
    "G_ema-attribute-persistent": (lambda r, p: put(r["G_ema"], "x", persistent_node(p)), True),
    "G_ema-child-persistent": (
        lambda r, p: items(get(r["G_ema"], "_modules")).append(("x", persistent_node(p))),
        True,
    ),
    "G_ema-tensor-persistent": (
        lambda r, p: items(get(r["G_ema"], "_buffers")).append(("x", persistent_node(p))),
        True,
    ),
    "G_ema-hook-persistent": (
        lambda r, p: put(r["G_ema"], "_forward_hooks", hooks_with(persistent_node(p))),
        True,
    ),
    "D-attribute": (lambda r, p: r.update(D=module(("x", evil_call(p)))), True),
    "D-global-attribute": (lambda r, p: r.update(D=module(("x", evil_global()))), False),
    "D-forward": (lambda r, p: r.update(D=module(("forward", evil_global()))), False),
    "D-hook": (
        lambda r, p: r.update(D=module(("_forward_pre_hooks", hooks_with(evil_global())))),
        False,
    ),
    "D-hook-is-module": (
        lambda r, p: r.update(D=module(("_forward_hooks", hooks_with(module())))),
        False,
    ),
    "D-hook-is-create-model": (
        lambda r, p: r.update(
            D=module(("_forward_hooks", hooks_with(Global("timm.models", "create_model"))))
        ),
        False,
    ),
    "D-wrapped-hook": (
        lambda r, p: r.update(
            D=module(("_load_state_dict_pre_hooks", hooks_with(_wrapped(evil_global()))))
        ),
        False,
    ),
    "D-class": (
        lambda r, p: r.update(D=module(("__class__", Global(TRAPS, "New")))),
        False,
    ),
    "D-class-through-slots": (lambda r, p: r.update(D=_slots("__class__", "New")), False),
    "D-dunder-call": (lambda r, p: r.update(D=module(("__call__", evil_global()))), False),
    "D-child": (
        lambda r, p: r.update(
            D=module(("_modules", DictNode([("x", Record("new", Global(TRAPS, "New"), (p,)))])))
        ),
        True,
    ),
    "G_ema-attribute": (lambda r, p: put(r["G_ema"], "x", evil_call(p)), True),
    "G_ema-forward": (lambda r, p: put(r["G_ema"], "forward", evil_global()), False),
    "G_ema-class": (lambda r, p: put(r["G_ema"], "__class__", evil_global()), False),
    "G_ema-eval": (lambda r, p: put(r["G_ema"], "eval", evil_global()), False),
    "G_ema-hook": (
        lambda r, p: put(r["G_ema"], "_forward_pre_hooks", hooks_with(evil_global())),
        False,
    ),
    "G_ema-backward-hook": (
        lambda r, p: put(r["G_ema"], "_backward_hooks", hooks_with(evil_global())),
        False,
    ),
    "G_ema-second-build": (
        lambda r, p: r["G_ema"].ops.append(("build", DictNode([("x", evil_call(p))]))),
        True,
    ),
    "G_ema-build-not-a-dict": (lambda r, p: r["G_ema"].ops.append(("build", p)), False),
    "G_ema-parameter": (lambda r, p: replace_parameter(r, evil_call(p)), True),
    "G_ema-child": (
        lambda r, p: items(get(r["G_ema"], "_modules")).append(("extra", evil_call(p))),
        True,
    ),
    "conv-forward": (
        lambda r, p: put(find(r["G_ema"], "Conv2d"), "_conv_forward", evil_global()),
        False,
    ),
    "conv-channels-call": (
        lambda r, p: put(find(r["G_ema"], "Conv2d"), "in_channels", evil_call(p)),
        True,
    ),
    "tensor-hooks": (lambda r, p: tensor_with(r, 5, hooks_with(evil_call(p))), True),
    "tensor-size": (lambda r, p: tensor_with(r, 2, evil_call(p)), True),
    "tensor-storage": (lambda r, p: tensor_with(r, 0, evil_call(p)), True),
    "parameter-with-state": (
        lambda r, p: replace_parameter(
            r, Record("call", Global("torch._utils", "_rebuild_parameter_with_state"), (p,))
        ),
        False,
    ),
    "norm-hook-state": (lambda r, p: put(_norm(r), "eps", evil_call(p)), True),
    "call-cycle": (lambda r, p: r.update(x=_cycle(p)), True),
}


def _first(root: Root, key: str, value: Node) -> None:
    rest = dict(root)
    root.clear()
    root[key] = value
    root.update(rest)


def _wrapped(hook: Node) -> Record:
    node = Record("new", Global("torch.nn.modules.module", "_WrappedHook"), ())
    node.ops.append(("build", DictNode([("hook", hook), ("with_module", False)])))
    return node


def _slots(name: str, cls: str) -> Record:
    node = Record("new", Global("torch.nn.modules.module", "Module"), ())
    node.ops.append(("build", (None, DictNode([(name, Global(TRAPS, cls))]))))
    return node


def _norm(root: Root) -> Record:
    return items(get(find(root["G_ema"], "Conv2d"), "_forward_pre_hooks"))[0][1]


def _cycle(p: str) -> list[Node]:
    ring: list[Node] = [evil_call(p)]
    ring.append(ring)
    return ring


def edited(real: Path, edit: Callable[[Root, str], None], marker: str) -> bytes:
    """``real`` with its nodes changed by ``edit``."""
    parsed = parse(real)
    root: Root = dict(parsed.root.items)
    edit(root, marker)
    out = io.BytesIO()
    Writer(out, Source(real)).write(DictNode(list(root.items())))
    return out.getvalue()


WHOLE: dict[str, tuple[Callable[[bytes, str], bytes], bool]] = {
    "before-a-snapshot": (lambda real, p: evil(p) + real, True),
    "behind-a-snapshot": (lambda real, p: real + evil(p), False),
    "behind-a-snapshot-null": (lambda real, p: real + b"\0" * 8, False),
    "popped-before-the-dict": (
        lambda real, p: real[:2] + call(MKDIR, s(p)) + POP + real[2:],
        True,
    ),
    "below-the-dict": (lambda real, p: real[:2] + call(MKDIR, s(p)) + real[2:], True),
    "alone": (lambda real, p: evil(p), True),
    "root-is-a-call": (
        lambda real, p: b"\x80\x04" + call(g("builtins", "dict"), mapped(p)) + b".",
        True,
    ),
    "root-by-eval": (
        lambda real, p: (
            b"\x80\x04"
            + call(g("builtins", "eval"), s(f"{{'G_ema': __import__('os').mkdir({p!r})}}"))
            + b"."
        ),
        True,
    ),
    "text-protocol": (lambda real, p: f"cos\nmkdir\n(S{p!r}\ntR.".encode(), True),
    "python-pickler": (lambda real, p: pickle.dumps(_Reduces(p)), True),
    "duplicate-key": (
        lambda real, p: real[:-2] + s("G_ema") + call(MKDIR, s(p)) + b"u.",
        True,
    ),
    "key-is-a-call": (lambda real, p: real[:-2] + call(MKDIR, s(p)) + NONE + b"u.", True),
}


class _Reduces:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return __import__("os").mkdir, (self.path,)


__all__ = ["EDITS", "FRAGMENTS", "WHOLE", "edited", "s", "spliced"]
