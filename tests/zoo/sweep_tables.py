"""All entries of the sweep, by name."""

from __future__ import annotations

from tests.zoo.sweep import Entry
from tests.zoo.sweep_hf import ENCODERS
from tests.zoo.sweep_hf_dense import DENSE
from tests.zoo.sweep_hf_detection import DETECTION
from tests.zoo.sweep_hf_documents_video import DOCUMENTS_VIDEO
from tests.zoo.sweep_hf_families import FAMILIES
from tests.zoo.sweep_hf_image_features import IMAGE_FEATURES
from tests.zoo.sweep_hf_other import OTHER
from tests.zoo.sweep_hf_segmentation import SEGMENTATION
from tests.zoo.sweep_hf_tasks import TASKS
from tests.zoo.sweep_hf_text_and_image import TEXT_AND_IMAGE
from tests.zoo.sweep_hf_towers import TOWERS
from tests.zoo.sweep_hf_vision_language import VISION_LANGUAGE
from tests.zoo.sweep_timm import PLAIN
from tests.zoo.sweep_timm_hierarchies import HIERARCHIES

_ALL = (
    *PLAIN,
    *HIERARCHIES,
    *ENCODERS,
    *TOWERS,
    *VISION_LANGUAGE,
    *IMAGE_FEATURES,
    *DENSE,
    *SEGMENTATION,
    *DETECTION,
    *OTHER,
    *DOCUMENTS_VIDEO,
    *TASKS,
    *TEXT_AND_IMAGE,
    *FAMILIES,
)
ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _ALL}
assert len(ENTRIES) == len(_ALL), "two entries have one name"
