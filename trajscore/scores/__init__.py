"""The score folder: Parquet parts beside a manifest with their checksums and the settings of the run.

A part becomes visible by a rename, and only then the manifest, or the records beside it, learn of it, by a rename too. Killing
the process at any moment therefore leaves whole parts and a manifest that tells the truth about those it names; a part that was
renamed but not yet entered is adopted on the next start if it carries the same run in its metadata.

The folder while it is written and continued is `folder.py`; `part_files.py` has a part's file, `manifest.py` the manifest,
`lock.py` lets one writer in; `merging.py` and `verifying.py` are what `merge` and `verify` call; `source.py`, `scanning.py` and
`parts.py` read, `list_columns.py` and `sound_rows.py` help with lists.
"""

from trajscore.io.ours import MANIFEST as MANIFEST
from trajscore.scores.folder import ScoreFolder as ScoreFolder
from trajscore.scores.folder import goes_on_from as goes_on_from
from trajscore.scores.folder import refuse_foreign as refuse_foreign
from trajscore.scores.manifest import Manifest as Manifest
from trajscore.scores.manifest import Part as Part
from trajscore.scores.manifest import Shard as Shard
from trajscore.scores.manifest import changed_settings as changed_settings
from trajscore.scores.manifest import differences as differences
from trajscore.scores.manifest import read_manifest as read_manifest
from trajscore.scores.merging import merge as merge
from trajscore.scores.part_files import write_part as write_part
from trajscore.scores.part_files import written_part as written_part
from trajscore.scores.scanning import part_paths as part_paths
from trajscore.scores.scanning import scan as scan
from trajscore.scores.scanning import scan_parts as scan_parts
from trajscore.scores.verifying import verify as verify
