"""The core decides and does no I/O: the linter's rule for that has no hole."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
BANNED = tomllib.loads((ROOT / "gateway/core/ruff.toml").read_text())["lint"]["flake8-tidy-imports"]["banned-api"]


def test_the_core_may_import_no_part_of_the_shell() -> None:
    shell = {path.stem for path in (ROOT / "gateway").iterdir() if path.suffix == ".py" or path.is_dir()}
    shell -= {"__init__", "__pycache__", "core"}
    assert {f"gateway.{name}" for name in shell} <= BANNED.keys()


def test_the_core_may_import_nothing_that_reaches_the_world() -> None:
    outside = {"aiohttp", "aiosqlite", "argon2", "asyncio", "logging", "os", "pathlib", "socket", "sqlite3", "time"}
    assert outside <= BANNED.keys()


def test_nothing_imports_the_front_door() -> None:
    for path in (ROOT / "gateway").rglob("*.py"):
        assert "import opusmax" not in path.read_text(encoding="utf-8"), path


def test_no_file_of_the_product_is_long() -> None:
    for path in [ROOT / "opusmax.py", *(ROOT / "gateway").rglob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 310, path
