"""Batches beyond one machine: expressions about images, answered by Ray's workers, written as parquet.

>>> from promptris.distributed import segment_dataset
>>> segment_dataset("questions.parquet", "answers/", concurrency=(1, 8))

Needs the extra `ray`; nothing of it is imported before it is used.
"""

from __future__ import annotations

from promptris.distributed.run import Progress, Summary, segment_dataset

__all__ = ["Progress", "Summary", "segment_dataset"]
