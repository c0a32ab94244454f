"""The table `unspool_once`, as `unspool.middleware.commit_table` has it: no model, for its primary
key has two columns, and Django has no name for that before 5.2."""

from typing import Any, ClassVar

from django.db import migrations

from unspool.middleware.commit_table import DDL, NAME


def make(apps: Any, schema_editor: Any) -> None:
    for statement in DDL.get(schema_editor.connection.vendor, ()):
        schema_editor.execute(statement)


def drop(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor in DDL:
        schema_editor.execute(f"DROP TABLE IF EXISTS {NAME}")


class Migration(migrations.Migration):
    initial = True
    dependencies: ClassVar[list[Any]] = []
    operations: ClassVar[list[Any]] = [migrations.RunPython(make, drop)]
