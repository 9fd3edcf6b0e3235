"""Which names of TensorRT's Python packages a source uses, read from its syntax tree.

`trt` is either package and `trt_rtx` the second alone. An object's class is its annotation: `tensorrt.X`,
`tensorrt_rtx.X`, or `tensorrt_10_15.X` for what TensorRT has from 10.15 on and the second too. What comes from TensorRT
and is not annotated is refused, so that nothing is missed.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

MODULES = {"trt": "tensorrt", "_trt": "tensorrt", "trt_rtx": "tensorrt_rtx"}
PACKAGES = ("tensorrt", "tensorrt_10_15", "tensorrt_rtx")


@dataclass(frozen=True)
class Use:
    """A dotted name of a package; of a call, also how many arguments have no name, and the others' names."""

    package: str
    path: str
    positional: int | None = None
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subclass:
    """A class of ours under one of theirs: how many arguments each method takes beside `self`."""

    package: str
    base: str
    methods: dict[str, int]


@dataclass(frozen=True)
class Found:
    """What an expression is: a module (no path), a class or a member of one, an object, or what a call returned."""

    package: str
    path: str = ""
    kind: str = "name"


@dataclass
class Names:
    """All uses of a source."""

    uses: list[Use] = field(default_factory=list)
    subclasses: list[Subclass] = field(default_factory=list)


def names_of(source: str) -> Names:
    tree, names = ast.parse(source), Names()
    returns = {
        node.name: cls
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (cls := annotated(node.returns))
    }
    _Reader(names, returns).visit(tree)
    return names


def annotated(node: ast.AST | None) -> Found | None:
    """The class that an annotation names, also in `X | None`."""
    if isinstance(node, ast.BinOp):
        return annotated(node.left)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in PACKAGES:
        return Found(node.value.id, node.attr, "object")
    return None


class _Reader(ast.NodeVisitor):
    def __init__(self, names: Names, returns: dict[str, Found]) -> None:
        self.names, self.returns = names, returns
        self.scopes: list[dict[str, Found]] = [{}]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = [*node.args.args, *node.args.kwonlyargs]
        self.scopes.append({a.arg: cls for a in arguments if (cls := annotated(a.annotation))})
        self.generic_visit(node)
        self.scopes.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            found = self.resolve(base)
            if found is not None:
                methods = {f.name: len(f.args.args) - 1 for f in node.body if isinstance(f, ast.FunctionDef)}
                self.names.subclasses.append(Subclass(found.package, found.path, methods))
        for part in node.body:
            self.visit(part)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        cls = annotated(node.annotation)
        if cls is not None and isinstance(node.target, ast.Name):
            self.scopes[-1][node.target.id] = cls
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        value = node.value
        if isinstance(value, ast.Call):
            found = self.resolve(value.func, record=False)
            name = getattr(value.func, "attr", getattr(value.func, "id", ""))
            if found is not None or name in self.returns:
                raise AssertionError(f"line {node.lineno}: annotate what {ast.unparse(value.func)} returns")
        for part in (value, *node.targets):
            self.visit(part)

    def visit_Call(self, node: ast.Call) -> None:
        found = self.resolve(node.func)
        if found is not None:
            path = f"{found.path}.__init__" if found.kind == "name" and "." not in found.path else found.path
            keywords = tuple(k.arg for k in node.keywords if k.arg)
            self.names.uses.append(Use(found.package, path, len(node.args), keywords))
        else:
            self.visit(node.func)
        for part in (*node.args, *node.keywords):
            self.visit(part)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self.resolve(node) is None:
            self.generic_visit(node)

    def resolve(self, node: ast.AST, record: bool = True) -> Found | None:
        """What an expression is, if it is TensorRT's; its dotted names are recorded on the way."""
        if isinstance(node, ast.Name):
            if node.id in MODULES:
                return Found(MODULES[node.id])
            return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), None)
        if isinstance(node, ast.Call):
            found = self.resolve(node.func, record=False)
            return found and Found(found.package, found.path, "result")
        if not isinstance(node, ast.Attribute):
            return None
        if node.attr in MODULES:  # self._trt
            return Found(MODULES[node.attr])
        base = self.resolve(node.value, record)
        if base is None:
            return None
        if base.kind == "result":
            raise AssertionError(f"line {node.lineno}: annotate what {ast.unparse(node.value)} is")
        if not base.path and node.attr.startswith("__"):
            return None
        path = f"{base.path}.{node.attr}" if base.path else node.attr
        if record:
            self.names.uses.append(Use(base.package, path))
        return Found(base.package, path)


def to_json(names: Names) -> dict[str, Any]:
    return {
        "uses": [vars(use) for use in names.uses],
        "subclasses": [vars(subclass) for subclass in names.subclasses],
    }
