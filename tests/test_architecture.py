"""What the style guide promises and no linter checks: sizes, imports without effect, layout."""

import ast
import functools
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jaxtune", "pallas_kernels", "convert")
OP_FILES = ("__init__.py", "api.py", "reference.py", "cases.py", "bench.py")
BANNED_STEMS = {"utils", "helpers", "common", "misc"}
FAMILY = re.compile(
    r"(llama|mistral|gemma\d*|qwen\d*)(_text|for(causallm|conditionalgeneration))?", re.I
)


def sources(*folders: str) -> list[Path]:
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return [file for file in files if not any(part.startswith(".") for part in file.parts)]


@functools.cache
def walked(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))))


def nodes(file: Path) -> Iterator[tuple[str, ast.AST]]:
    """Each node of a file with its place, as an editor writes it."""
    name = file.relative_to(ROOT)
    for node in walked(file):
        yield f"{name}:{getattr(node, 'lineno', 0)}", node


def lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def run_fresh(program: str) -> str:
    """Run a program in a fresh Python in the repository root; return all that it printed."""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_no_file_is_over_500_lines():
    assert {f: n for f in sources(*PACKAGES, "tests") if (n := lines(f)) > 500} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_median_file_is_under_200_lines(package):
    assert statistics.median(map(lines, sources(package))) < 200


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, whose length the style guide wants."""
    first = function.body[0]
    docstring = 0
    if ast.get_docstring(function) is not None:
        docstring = (first.end_lineno or 0) - first.lineno + 1
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_no_function_is_over_60_lines():
    functions = [
        (place, node)
        for file in sources(*PACKAGES, "tests")
        for place, node in nodes(file)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    sizes = {place: code_lines(node) for place, node in functions}
    assert {place: size for place, size in sizes.items() if size > 60} == {}


def is_banned(node: ast.AST) -> bool:
    """True for assert, eval, exec and what reads or writes the environment."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in {"eval", "exec"}
    names = {"environ", "environb", "getenv", "putenv", "unsetenv"}
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id == "os" and node.attr in names
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and any(alias.name in names for alias in node.names)
    return isinstance(node, ast.Assert)


def test_library_has_no_assert_eval_exec_or_environment():
    files = [file for file in sources(*PACKAGES) if file.name != "__main__.py"]
    assert [place for file in files for place, node in nodes(file) if is_banned(node)] == []


def test_no_relative_imports():
    assert [
        place
        for file in sources(*PACKAGES, "tests")
        for place, node in nodes(file)
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ] == []


def test_no_file_is_named_after_nothing():
    assert [f for f in sources(*PACKAGES, "tests") if f.stem.strip("_") in BANNED_STEMS] == []


IMPORT = """
import importlib, os, pkgutil, sys
if "{package}" == "pallas_kernels":
    import jax  # what jax itself does at import is not ours
before = dict(os.environ)
package = importlib.import_module("{package}")
if {everything}:
    for module in pkgutil.walk_packages(package.__path__, "{package}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
bridge = sys.modules.get("jax._src.xla_bridge")
if bridge is not None and bridge.backends_are_initialized():
    sys.exit("the import touched a device")
if {strict} and dict(os.environ) != before:
    sys.exit("the import changed the environment")
if "{package}" != "pallas_kernels" and not {everything} and "jax" in sys.modules:
    sys.exit("the import imported jax")
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_touches_no_device_and_prints_nothing(package):
    assert run_fresh(IMPORT.format(package=package, everything=False, strict=True)) == ""


@pytest.mark.parametrize(
    "package", [pytest.param("jaxtune", marks=pytest.mark.slow), "pallas_kernels", "convert"]
)
def test_importing_every_module_touches_no_device_and_prints_nothing(package):
    # jaxtune's modules import transformers and datasets, whose environment is not ours to judge.
    strict = package != "jaxtune"
    assert run_fresh(IMPORT.format(package=package, everything=True, strict=strict)) == ""


def test_jaxtune_imports_within_a_tenth_of_a_second():
    program = "import time; t = time.perf_counter(); import jaxtune; print(time.perf_counter() - t)"
    assert statistics.median(float(run_fresh(program)) for _ in range(5)) <= 0.1


def test_every_kernel_folder_has_the_files_of_an_op():
    folders = [
        f for f in (ROOT / "pallas_kernels").iterdir() if f.is_dir() and f.name[0] not in "._"
    ]
    ops = {f.name: {file.name for file in f.glob("*.py")} for f in folders if any(f.glob("*.py"))}
    assert ops, "pallas_kernels holds no op"
    assert {op: set(OP_FILES) - files for op, files in ops.items() if set(OP_FILES) - files} == {}
    assert [op for op, files in ops.items() if not files & {"xla.py", "triton.py"}] == []


def test_public_names_are_those_that_the_readme_lists():
    import jaxtune

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Public names$(.*?)(?=^## |\Z)", readme, re.M | re.S)
    assert section, "README.md has no section `## Public names`"
    listed = re.findall(r"^- `(\w+)`", section[1], re.M)
    assert list(jaxtune.__all__) == sorted(jaxtune.__all__)
    assert sorted(listed) == sorted(jaxtune.__all__)


def names_of_others(file: Path) -> dict[str, str]:
    """What a file imports from outside the project: the local name, and the package."""
    found: dict[str, str] = {}
    for node in walked(file):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node.module or "" for alias in node.names}
    roots = {name: module.split(".")[0] for name, module in found.items()}
    return {name: root for name, root in roots.items() if root not in PACKAGES}


def changed_by(node: ast.AST) -> list[ast.expr]:
    """The objects whose attributes a node sets."""
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    found = [target.value for target in targets if isinstance(target, ast.Attribute)]
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "setattr":
        found.append(node.args[0])
    return found


def root_of(expression: ast.expr) -> str | None:
    while isinstance(expression, ast.Attribute):
        expression = expression.value
    return getattr(expression, "id", None)


def test_no_library_of_others_is_changed_and_trl_is_not_imported():
    imported, changed = set(), []
    for file in sources(*PACKAGES):
        others = names_of_others(file)
        imported |= set(others.values())
        changed += [
            place
            for place, node in nodes(file)
            if any(root_of(thing) in others for thing in changed_by(node))
        ]
    assert changed == []
    assert {"transformers", "huggingface_hub"} <= imported
    assert not {"trl", "unsloth", "accelerate"} & imported


def names_family(node: ast.AST) -> bool:
    """True for an expression that is, or holds in a tuple, a family's name or its model_type."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return any(map(names_family, node.elts))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value == "model_type" or FAMILY.fullmatch(node.value) is not None
    if isinstance(node, ast.Subscript):
        return names_family(node.slice)
    if isinstance(node, ast.Call):
        return any(map(names_family, node.args))
    return getattr(node, "attr", getattr(node, "id", None)) == "model_type"


def branches_on_family(node: ast.AST) -> bool:
    """True for a comparison, a match case or a startswith on a family's name."""
    if isinstance(node, ast.Compare):
        return any(map(names_family, [node.left, *node.comparators]))
    if isinstance(node, ast.MatchValue):
        return names_family(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in {"startswith", "endswith"} and any(map(names_family, node.args))
    return False


def test_only_a_familys_own_file_and_the_registry_branch_on_its_name():
    models = ROOT / "jaxtune" / "models"
    free = {file for file in models.glob("*.py") if FAMILY.fullmatch(file.stem)}
    free.add(models / "registry.py")
    files = [file for file in sources("jaxtune") if file not in free]
    found = [place for file in files for place, node in nodes(file) if branches_on_family(node)]
    assert found == []
