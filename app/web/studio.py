"""What is behind the page: the models, a folder of runs, the jobs in it, and the images that visitors made."""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.web.comparison import CompareRequest, EditChoice
from app.web.edit_list import EditAudit, ListedEdit, find_audits, find_runs, list_edits
from app.web.job_estimate import ShownEstimates
from app.web.models import StudioModel, StudioModels
from app.web.results import Results
from app.web.safety import SafetyChecker
from app.web.sampler import Sampler, StopButtons
from app.web.studio_jobs import StudioJobs
from erasure.concept import Concept
from erasure.edits import Edit, check_distinct
from erasure.erasing import erase
from erasure.errors import unknown_value_error
from erasure.methods.uce import UCE
from erasure.pocket.captions import OBJECT_WORDS, STYLE_WORDS, vocabulary
from erasure.recipes import configure_method

FIRST_PROMPT, OTHER_FIRST_PROMPT = "a watercolor picture of a house", "a painting by Van Gogh"
FIRST_SEED = 7
READY_CONCEPT = Concept(name="watercolor", kind="style")  # erased when the studio starts for the first time
PEOPLE = ("ada", "otto")  # among pocket's objects


@dataclass
class Studio:
    """A studio over a folder of runs.

    Attributes:
        is_local: whether visitors may name paths of this machine.
        checker: hides images on public pages.
        ready: set when `prepare` is done.
    """

    models: StudioModels
    root: Path
    is_local: bool = True
    checker: SafetyChecker | None = None
    results: Results = field(default_factory=Results)
    ready: threading.Event = field(default_factory=threading.Event)
    stops: StopButtons = field(default_factory=StopButtons)
    estimates: ShownEstimates = field(default_factory=ShownEstimates)

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.models, self.load_edits, self.checker)
        self.jobs = StudioJobs(self.root / "jobs", self.models, self.load_edits, self.edit_folders)

    @property
    def first_source(self) -> str:
        return self.models.sources[0]

    def prepare(self) -> None:
        """Prepare an erasure for the first visit: a closed form that takes a few seconds, once. The page may be open already."""
        model = self.models.get(self.first_source)
        if model.is_pocket:
            method, concepts, _ = configure_method(UCE, [READY_CONCEPT], model.model.family, {})
            with self.sampler.exclusive(model):
                erase(model.model, concepts, method, out=self.root / "ready" / f"{READY_CONCEPT.name}-{model.source}-uce")
        self.ready.set()
        if model.is_pocket:
            for _ in self.sampler.compare(self.first_request(model.source)):  # also loads the judges and warms the kernels up
                pass

    def is_fast(self, model: StudioModel) -> bool:
        """Return whether a model makes images within seconds, so that the page may make some without being asked."""
        return model.is_pocket or model.model.device.type != "cpu"

    def first_request(self, source: str) -> CompareRequest:
        """Return what the page shows of a model before anyone asked for something."""
        model = self.models.get(source)
        edits = tuple(EditChoice(name) for name in list(self.edits(source))[-1:])
        prompt = FIRST_PROMPT if model.is_pocket else OTHER_FIRST_PROMPT
        guidance = model.model.default_guidance
        return CompareRequest(model=source, prompt=prompt, edits=edits, seed=FIRST_SEED, count=4, guidance=guidance)

    def edits(self, source: str) -> dict[str, ListedEdit]:
        """Return the edits below the runs folder that were made on a model, by display name, newest first."""
        return list_edits(self.root, self.models.get(source).fingerprint)

    def edit_folders(self, source: str) -> dict[str, Path]:
        return {name: edit.folder for name, edit in self.edits(source).items()}

    def audits(self) -> dict[str, EditAudit]:
        """Return the newest audit of every edit that was audited alone, by the folder of its erasure."""
        return find_audits(self.root)

    def load_edits(self, source: str, names: Sequence[str]) -> list[Edit]:
        """Load edits of a model by their display names.

        Raises:
            UserError: A name is not on the list, or an edit is duplicated.
        """
        available = self.edits(source) if names else {}
        for name in names:
            if name not in available:
                raise unknown_value_error("edit", name, available)
        return list(check_distinct([Edit.load(available[name].folder) for name in names]))

    def reports(self) -> dict[str, Path]:
        """Return the reports below the runs folder by the path of their folder, newest first."""
        return {path.parent.relative_to(self.root).as_posix(): path for path in find_runs(self.root).reports}

    def report(self, name: str) -> Path:
        """Return a report. The name is compared with the list, never joined to a path.

        Raises:
            UserError: No report has that name.
        """
        reports = self.reports()
        if name not in reports:
            raise unknown_value_error("report", name, reports)
        return reports[name]


def unknown_words(model: StudioModel, prompt: str) -> list[str]:
    """Return the words of a prompt that are in no training caption of a shipped model; empty for other models."""
    if not model.is_pocket:
        return []
    caption_words = vocabulary()
    return list(dict.fromkeys(word for word in re.findall(r"[^\W_][\w'-]*", prompt.lower()) if word not in caption_words))


def known_concepts(model: StudioModel) -> dict[str, list[str]]:
    """Return the concepts that a shipped model was trained on, by kind; empty for other models."""
    if not model.is_pocket:
        return {}
    return {
        "styles": [words.names[0] for words in STYLE_WORDS.values()],
        "things": [words.names[0] for key, words in OBJECT_WORDS.items() if key not in PEOPLE],
        "people": [words.names[0] for key, words in OBJECT_WORDS.items() if key in PEOPLE],
    }
