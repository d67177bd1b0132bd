"""Tokenised documents on disk: array_record files of tensorflow-datasets.

A record is a document. The folder is `dynexit_documents_DIGEST/1.0.0`, and the digest is of the
texts, their splits and the vocabulary. Byte pairs are in `tokenizer.json` beside the records.
"""

import errno
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from dynexit.core.data import SPLITS
from dynexit.core.files import replacing
from dynexit.data import store
from dynexit.data.host_shapes import Int
from dynexit.data.text.codec import BYTES, Codec, given_codec, read_codec, trained_codec
from dynexit.data.text.documents import Documents, digest

Ids: TypeAlias = Int[np.ndarray, "_"]
TOKENIZER = "tokenizer.json"


class Corpus(NamedTuple):
    """Tokenised documents.

    Attributes:
      codec: of the ids.
      splits: name of a split to the ids of its documents, int32 `[n]` each, with the end.
    """

    codec: Codec
    splits: dict[str, list[Ids]]


def corpus(
    documents: Documents,
    vocabulary: int,
    folder: store.PathLike | None,
    tokenizer: Path | None = None,
) -> Corpus:
    """The documents as ids; tokenised and written where that has not been done before.

    Byte pairs are counted in the training split alone.

    Args:
      documents: of every split.
      vocabulary: V, at least 257.
      folder: of the data, see `dynexit.data.store.data_folder`.
      tokenizer: a folder with `tokenizer.json`; None to count byte pairs.

    Raises:
      OSError: no space, or no right to write.
      ImportError: V above 257 and no `tokenizers`.
    """
    given = None if tokenizer is None else given_codec(tokenizer, vocabulary)
    kind = "" if given is None else given.pairs.to_str()
    name = f"dynexit_documents_{digest(documents, vocabulary, kind)}"
    last = None if given is None else given.last
    place = store.data_folder(folder) / name / store.VERSION
    if _is_whole(place, vocabulary):
        return _read(place, vocabulary, last)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with store.locked(place.parent):
            if not _is_whole(place, vocabulary):
                shutil.rmtree(place, ignore_errors=True)
                _write(documents, vocabulary, place, given)
    except OSError as error:
        raise OSError(
            error.errno or errno.EIO,
            f"cannot write tokens to {place}: {error.strerror or error}; free some space or set "
            "DYNEXIT_DATA to another folder",
        ) from error
    return _read(place, vocabulary, last)


def _is_whole(place: Path, vocabulary: int) -> bool:
    return place.is_dir() and (vocabulary == BYTES or (place / TOKENIZER).is_file())


def _write(documents: Documents, vocabulary: int, place: Path, given: Codec | None) -> None:
    store.require_space(place.parent, sum(4 * len(d.text) for ds in documents.values() for d in ds))
    codec = given or trained_codec((d.text for d in documents["train"]), vocabulary)
    store.write_records(_builder(place, documents, codec))
    if codec.pairs is not None:
        with replacing(place / TOKENIZER) as draft:
            codec.pairs.save(str(draft))


def _builder(place: Path, documents: Documents, codec: Codec | None) -> store.Builder:
    import tensorflow_datasets as tfds

    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = place.parent.name
        VERSION = tfds.core.Version(store.VERSION)
        pkg_dir_path = tfds.core.Path(__file__).parent

        def _info(self) -> tfds.core.DatasetInfo:
            encoding = tfds.features.Encoding.BYTES
            ids = tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding=encoding)
            return tfds.core.DatasetInfo(
                builder=self,
                description="Documents as token ids, each with the end as its last.",
                disable_shuffling=True,
                features=tfds.features.FeaturesDict({"tokens": ids, "path": tfds.features.Text()}),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager  # nothing is downloaded
            return {split: self._generate_examples(split) for split in SPLITS}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            assert codec is not None
            ids = codec.encode_all([document.text for document in documents[split]])
            for row, (document, found) in enumerate(zip(documents[split], ids, strict=True)):
                tokens = np.append(found, np.int32(codec.end)).astype(np.int32)
                yield row, {"tokens": tokens, "path": document.path}

    return Written(data_dir=os.fspath(place.parent.parent), file_format="array_record")


@functools.lru_cache(maxsize=4)
def _read(place: Path, vocabulary: int, last: int | None) -> Corpus:
    try:
        source: Any = _builder(place, {}, None)
        splits = {}
        for split in SPLITS:
            rows: Any = source.as_data_source(split)
            splits[split] = [row["tokens"] for row in rows.__getitems__(range(len(rows)))]
        path = place / TOKENIZER
        codec = read_codec(path, vocabulary, last) if path.exists() else Codec(vocabulary)
    except ImportError:
        raise
    except Exception as error:  # array_record, protobuf and tokenizers each raise their own
        raise store.DataDamaged(
            f"{place} is damaged: {type(error).__name__}: {error}. Remove that folder; it is "
            "written again at the next run."
        ) from error
    return Corpus(codec, splits)
