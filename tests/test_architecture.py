"""The rules of the house: imports point one way, and the bare parts import without the heavy ones."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "search_space": set(),
    "trainer": {"search_space"},
    "analysis": {"search_space"},
    "reports": {"analysis", "search_space"},
    "sweeps": {"trainer", "analysis", "search_space"},
    "lclab": {"search_space", "trainer", "analysis", "reports", "sweeps"},
}


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        ours = imported(path) & MAY_IMPORT.keys() - {package}
        assert ours <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {ours - MAY_IMPORT[package]}"


def loaded_by(modules: list[str]) -> set[str]:
    code = f"import sys, {', '.join(modules)}; print(*{{m.split('.')[0] for m in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def modules_of(*packages: str) -> list[str]:
    paths = [p for package in packages for p in (ROOT / package).rglob("*.py") if p.stem != "__init__"]
    return [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths]


def test_model_and_trainer_run_on_a_bare_machine() -> None:
    assert not loaded_by(modules_of("search_space", "trainer")) & {"ray", "optuna", "mlflow"}


def test_analysis_and_reports_read_tables_only() -> None:
    heavy = {"ray", "optuna", "mlflow", "lightning", "litdata", "trainer", "sweeps"}
    assert not loaded_by(modules_of("analysis", "reports")) & heavy


def test_the_driver_needs_no_lightning() -> None:
    assert "lightning" not in loaded_by(["sweeps.run"])


def test_help_answers_without_the_heavy_parts() -> None:
    assert not loaded_by(["lclab.__main__"]) & {"torch", "ray", "optuna", "mlflow", "scipy", "pandas"}


def test_torchvision_is_not_installed() -> None:
    assert importlib.util.find_spec("torchvision") is None


def test_every_module_says_what_it_is_for_and_what_it_offers() -> None:
    for path in (p for package in MAY_IMPORT for p in (ROOT / package).rglob("*.py") if p.stem != "__init__"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path.relative_to(ROOT)} has no docstring"
        names = {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
        assert "__all__" in names, f"{path.relative_to(ROOT)} has no __all__"
