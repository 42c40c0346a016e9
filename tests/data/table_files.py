"""Write tables of image files and captions for tests."""

import json

import datasets
import pyarrow
import pyarrow.parquet

from medcap.data.layout import DataLayout


def write_csv(path, rows):
    lines = [",".join(rows[0]), *(",".join('"' + str(v).replace('"', '""') + '"' for v in r.values()) for r in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write_csv(path, rows)
    return path


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no image, and never opened")


def all_in_train(**keys):
    return DataLayout(valid_fraction=0, test_fraction=0, **keys)


def paths(rows):
    return [image and image["path"] for image in rows.cast_column("image", datasets.Image(decode=False))["image"]]


def simple_rows(n, patients=None):
    return [{"file_name": f"{i}.png", "caption": f"c{i}", "patient": f"p{i % (patients or n)}"} for i in range(n)]


def ids(data):
    return {split: rows["image_id"][:] for split, rows in data.items()}
