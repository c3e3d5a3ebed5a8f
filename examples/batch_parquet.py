"""Label the images in a Parquet file, a batch at a time.

PASSPHRASE="alice's secret" python examples/batch_parquet.py http://localhost:8501 \
    FOLDER/served/digits/2 FOLDER/alice.keybundle images.parquet labels.parquet

The input has a column `pixels`, a list of 64 grey values in 0 … 1 in each row; the output has the
other columns, and `label`, `name` and `probability`. It appears whole or not at all.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from keras_encryip.client import Decoder
from keras_encryip.client.serving import ServingClient
from keras_encryip.errors import EncryipError

server, model, bundle = sys.argv[1:4]
source, target = Path(sys.argv[4]), Path(sys.argv[5])
if target.exists():
    sys.exit(f"{target} exists already, and is not overwritten.")
draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")

table = pq.ParquetFile(source)
kept = table.schema_arrow.remove(table.schema_arrow.get_field_index("pixels"))
added = [("label", pa.int64()), ("name", pa.string()), ("probability", pa.float32())]
schema = pa.schema([*kept, *(pa.field(*field) for field in added)])

try:
    decoder = Decoder.open(model, bundle, os.environ["PASSPHRASE"])
    with (
        ServingClient(server, "digits", decoder) as client,
        pq.ParquetWriter(draft, schema) as writer,
    ):
        for batch in table.iter_batches(1024):  # memory for as many rows, however long the file
            images = batch["pixels"].flatten().to_numpy(zero_copy_only=False)
            found = client.predict(images.reshape(batch.num_rows, 8, 8, 1))
            labels = found.argmax(-1)
            names = np.array(decoder.class_names)[labels]
            columns = [*batch.drop_columns(["pixels"]).columns, labels, names, found.max(-1)]
            writer.write_table(pa.table([pa.array(column) for column in columns], schema))
    os.link(draft, target)  # unlike a rename, it fails if the target exists by now
except EncryipError as error:
    sys.exit(f"Nothing was written: {error}")
finally:
    draft.unlink(missing_ok=True)
print(f"{table.metadata.num_rows} rows labelled in {target}")
