"""Files of text, JSON, YAML and parquet as they are read: what does not read is one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guided_diffusers.core.checks import check_that, one_line

if TYPE_CHECKING:
    import pyarrow


@contextmanager
def reading_as(form: str, where: Any, *errors: type[Exception]) -> Iterator[None]:
    """Turn what a parser raises into a ValueError of one line.

    Args:
        form: What the content should be, such as "JSON".
        where: What the sentence calls it.
        errors: What the parser raises, beside ValueError and RecursionError.

    Raises:
        ValueError: It does not read.
    """
    try:
        yield
    except (ValueError, RecursionError, *errors) as error:
        raise ValueError(f"{where} does not read as {form}: {one_line(error)}") from error


def yaml_of(text: str, where: Any) -> Any:
    """The value of a text in YAML; ValueError in one line where it is none, or PyYAML is not installed."""
    try:
        import yaml  # in the extras `train` and `eval`
    except ModuleNotFoundError as error:
        raise ValueError(f"{where}: YAML needs PyYAML (pip install pyyaml); JSON needs nothing") from error
    with reading_as("YAML", where, yaml.YAMLError):
        return yaml.safe_load(text)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping of names to values in a file of JSON, by its ending, or of YAML; empty of an empty one.

    Raises:
        ValueError: The file does not read, or holds something else.
    """
    text = read_utf8(path)
    if Path(path).suffix == ".json":
        with reading_as("JSON", path):
            values = json.loads(text)
    else:
        values = yaml_of(text, path)
    values = {} if values is None else values
    check_that(isinstance(values, dict), path, values, "a mapping of names to values")
    return values


def read_parquet(path: str | Path) -> pyarrow.Table:
    """A parquet file, columns of repeated values (pandas' categories) as plain ones; else ValueError."""
    import pyarrow
    from pyarrow import parquet

    with reading_as("parquet", path, pyarrow.ArrowException):
        table = parquet.read_table(path)
    return table.cast(plain_schema(table.schema))


def plain_schema(schema: pyarrow.Schema) -> pyarrow.Schema:
    """A schema with the values' type in the place of dictionaries of them, which datasets does not know."""
    import pyarrow

    for place, field in enumerate(schema):
        if pyarrow.types.is_dictionary(field.type):
            schema = schema.set(place, field.with_type(field.type.value_type))
    return schema


def read_utf8(path: str | Path) -> str:
    """The text of a file; a mark of the byte order at its beginning is left out.

    Raises:
        ValueError: It is not UTF-8, naming the line.
    """
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: the byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def read_json_lines(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a file of one a line, with the numbers of their lines; empty lines are passed over.

    Raises:
        ValueError: As of `read_utf8`; a line is no JSON object.
    """
    rows = []
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if line.strip():
            with reading_as("JSON", f"{path}, line {number}"):
                row = json.loads(line)
            check_that(
                isinstance(row, dict), f"{path}, line {number}", row, 'a JSON object, such as {"a": 1}'
            )
            rows.append((number, row))
    return rows
